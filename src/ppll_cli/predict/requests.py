"""The requests that a profile sends to the measuring process (`meter`), each as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppll_cli.config.targets import make
from ppll_cli.job.placing import placed
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import LocalMethod, Site, module_criterion
from ppll_cli.predict.chain import Saved, Setup, Work
from ppll_cli.predict.timing import Stopwatch, batch_like, repeat, time_criterion


class UnitTimes(NamedTuple):
    """The time and memory of the units of a chain.

    Attributes:
        backward_s: Seconds of each unit's backward pass; if it is split, of the half for the
            inputs.
        step_s: Seconds of the optimizer's step for all units.
        params: Number of parameters of all units.
        bytes_per_parameter: See `Chain.bytes_per_parameter`.
        weight_s: Seconds of each unit's half for the parameters; empty if backward passes are not
            split.
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
    """Request to time a training step of a chain."""

    work: Work

    @property
    def threads(self) -> int:
        """CPU threads to measure with."""
        return self.work.setup.threads

    def measure(self) -> UnitTimes:
        """Make the chain, and time each of its units in a training step."""
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
    """Request to time a module's auxiliary network and loss.

    Attributes:
        local: Configuration of the local method's class.
        features: Shape and dtype of the first output of each unit.
        specs: Shape (without the batch dimension) and dtype of each tensor that the loss may read.
        with_gradient: Names of the tensors that the module makes, which take gradients.
    """

    setup: Setup
    local: Mapping[str, Any]
    features: tuple[ValueSpec, ...]
    modules: tuple[range, ...]
    module: int
    specs: Mapping[str, ValueSpec]
    with_gradient: frozenset[str]

    @property
    def threads(self) -> int:
        """CPU threads to measure with."""
        return self.setup.threads

    def measure(self) -> dict[str, float]:
        """Make the auxiliary network, and time it; see `time_criterion` for the result."""
        here, units = self.setup, self.setup.units()
        method: LocalMethod = make("local", self.local)
        site = Site(self.module, self.modules, units, self.features, here.image, here.task)
        criterion = module_criterion(method, site)
        placed(criterion, torch.device(here.device), here.compiled).train()
        values = {name: self._values(name) for name in criterion.reads}
        return time_criterion(criterion, values, here.task, here.numerics)

    def _values(self, name: str) -> Tensor:
        has_gradient = name in self.with_gradient
        values = batch_like(self.specs[name], self.setup.samples, torch.device(self.setup.device))
        if has_gradient and values.dim() == 4:  # feature maps are channels last
            values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(has_gradient and values.is_floating_point())


@dataclass(frozen=True)
class Copy:
    """Request to time the copy of a message to another device, as the ring transport copies it.

    The size is in bytes. With `by_host`, CUDA devices copy through pinned host memory.
    """

    size: int
    source: str
    target: str
    by_host: bool
    threads: int

    def measure(self) -> float:
        """Return the seconds of the copy; if `by_host`, the sum of copies to and from the host."""
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
                with torch.cuda.device(target):  # its events must be recorded on its own device
                    watch.mark()
                    landed.copy_(between, non_blocking=True)
                    watch.mark()
            return [sum(watch.spans())]

        return repeat(step, source)[0]
