"""What can be measured, each as plain data for the process that measures it (`meter`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppll_cli.config.targets import make
from ppll_cli.job.numerics import Numerics
from ppll_cli.job.placing import placed, prepare_compiler
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import LocalMethod, Site, module_criterion
from ppll_cli.models.unit import ImageSpec, Model
from ppll_cli.predict.chain import Saved, Work
from ppll_cli.predict.timing import Stopwatch, batch_like, repeat, time_criterion
from ppll_cli.tasks.task import Task


class UnitTimes(NamedTuple):
    """What the units of a chain cost.

    Attributes:
        forward_s: Of each unit, its forward pass.
        backward_s: Of each unit, its backward pass.
        saved: Of each unit, what it leaves in memory.
        step_s: Of the optimizer's step for all of them.
        params: Of all of them.
        bytes_per_parameter: With its gradient and what the optimizer keeps of it.
        weight_s: Where backwards are split, the half of each that goes to the parameters;
            `backward_s` is then the half that goes to the inputs.
    """

    forward_s: list[float]
    backward_s: list[float]
    saved: list[Saved]
    step_s: float
    params: int
    bytes_per_parameter: float
    weight_s: list[float]


@dataclass(frozen=True)
class Units:
    """A training step of some units, one behind the other."""

    work: Work

    @property
    def threads(self) -> int:
        """Those of the work."""
        return self.work.threads

    def measure(self) -> UnitTimes:
        """Time each unit between the others."""
        chain = self.work.chain()
        saved = chain.saved_bytes()
        seconds = repeat(chain.step, chain.device)
        count = len(chain.units)
        backwards, each = seconds[count:-1], 2 if self.work.split else 1
        return UnitTimes(
            forward_s=seconds[:count],
            backward_s=backwards[::each][::-1],
            weight_s=backwards[1::2][::-1] if self.work.split else [],
            saved=saved,
            step_s=seconds[-1],
            params=sum(parameter.numel() for parameter in chain.parameters),
            bytes_per_parameter=chain.bytes_per_parameter(),
        )


@dataclass(frozen=True)
class Loss:
    """A module's auxiliary network and local loss.

    Attributes:
        model: Configuration of the model's class.
        local: Configuration of the local method's class.
        image: What the model is built for.
        task: What is learnt.
        features: What the first output of each unit is like.
        modules: The units of each module.
        module: The module.
        specs: What each tensor is like that the loss may read.
        learnt: Names of those that the module makes, which have gradients.
        samples: Samples of a batch.
        device: Where to measure.
        threads: CPU threads.
        numerics: How to compute.
        compiled: By torch.compile.
    """

    model: Mapping[str, Any]
    local: Mapping[str, Any]
    image: ImageSpec
    task: Task
    features: tuple[ValueSpec, ...]
    modules: tuple[range, ...]
    module: int
    specs: Mapping[str, ValueSpec]
    learnt: frozenset[str]
    samples: int
    device: str
    threads: int
    numerics: Numerics
    compiled: bool

    def measure(self) -> dict[str, float]:
        """Time it; see `time_criterion`."""
        if self.compiled:
            prepare_compiler()
        model: Model = make("model", self.model)
        method: LocalMethod = make("local", self.local)
        units = tuple(model.units(self.image, self.task))
        site = Site(self.module, self.modules, units, self.features, self.image, self.task)
        criterion = module_criterion(method, site)
        placed(criterion, torch.device(self.device), self.compiled).train()
        values = {name: self._values(name) for name in criterion.reads}
        return time_criterion(criterion, values, self.task, self.numerics)

    def _values(self, name: str) -> Tensor:
        learnt = name in self.learnt
        values = batch_like(self.specs[name], self.samples, torch.device(self.device))
        if learnt and values.dim() == 4:  # as convolutions make maps
            values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(learnt and values.is_floating_point())


@dataclass(frozen=True)
class Copy:
    """A message from one device to another, as the ring carries it.

    Attributes:
        size: In bytes.
        source: The sender's device.
        target: The receiver's device.
        by_host: CUDA devices have to go through pinned memory of the host.
        threads: CPU threads.
    """

    size: int
    source: str
    target: str
    by_host: bool
    threads: int

    def measure(self) -> float:
        """Seconds of the copy, or through the host of both copies."""
        source, target = torch.device(self.source), torch.device(self.target)
        sent = torch.ones(self.size, dtype=torch.uint8, device=source)
        landed = torch.ones(self.size, dtype=torch.uint8, device=target)
        between = None
        if self.by_host:
            between = torch.ones(self.size, dtype=torch.uint8, pin_memory=True)

        def step() -> list[float]:
            watch = Stopwatch(source)
            watch.mark()
            (landed if between is None else between).copy_(sent, non_blocking=True)
            watch.mark()
            if between is not None:
                arriving = torch.cuda.current_stream(target)
                arriving.wait_stream(torch.cuda.current_stream(source))
                with torch.cuda.device(target):  # an event is of the device on which it is recorded
                    watch.mark()
                    landed.copy_(between, non_blocking=True)
                    watch.mark()
            return [sum(watch.spans())]

        return repeat(step, source)[0]
