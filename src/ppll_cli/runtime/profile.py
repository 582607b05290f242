"""How long the parts of a model take on the device that will train them.

Everything is measured on copies with weights of their own, so nothing of the run has been trained,
counted or drawn when it begins.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ppll_cli.partition.layout import Layout
from ppll_cli.runtime.ends import Ends
from ppll_cli.runtime.optimizer import make_optimizer
from ppll_cli.schedules.schedule import Schedule
from ppll_cli.settings import Optim
from ppll_cli.values import ValueSpec

WARMUP, REPETITIONS = 3, 12

Action = Callable[[], object]


@dataclass
class Profile:
    """Times units and auxiliary networks: forward, backward and the optimizer's step of a batch.

    Args:
        ends: The model and the local method.
        optim: Settings of the optimizer.
        samples: Of a batch, or micro-batch.
        device: Where to measure.
        threads: CPU threads, as a worker will have.
        bf16: Under bfloat16 autocast.
        conditions: Whatever else the times depend on, for the cache.
        folder: Where times are kept for the next run.
    """

    ends: Ends
    optim: Optim
    samples: int
    device: torch.device
    threads: int
    bf16: bool
    conditions: Mapping[str, Any]
    folder: Path
    _new: bool = False

    @cached_property
    def _known(self) -> dict[str, float]:
        """What was measured, now or before."""
        known: dict[str, float] = {}
        if self._file.exists():
            known = json.loads(self._file.read_text())
        return known

    @cached_property
    def _file(self) -> Path:
        own = {"samples": self.samples, "device": str(self.device), "threads": self.threads}
        own |= {"bf16": self.bf16, "optim": self.optim.name, "torch": torch.__version__}
        if self.device.type == "cuda":
            own["device"] = torch.cuda.get_device_name(self.device)
        text = json.dumps({**own, **self.conditions}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def unit(self, index: int) -> float:
        """Seconds of a unit."""
        unit = self.ends.site.units[index]

        def action() -> Action:
            inputs = self._inputs(index)
            return self._training(unit.build(), lambda network: network(*inputs))

        return self._timed(f"unit {unit.name}", action)

    def auxiliary(self, modules: Sequence[range], module: int) -> float:
        """Seconds of a module's auxiliary network and local loss."""

        def action() -> Action:
            build, specs = self.ends.criterion(modules, module)
            criterion = build()
            values = {name: self._values(specs[name]) for name in criterion.reads}
            return self._training(criterion, lambda network: network(values)[0])

        stop = modules[module].stop
        return self._timed(f"auxiliary {module} of {len(modules)} up to {stop}", action)

    def copy(self, stop: int) -> float:
        """Seconds to copy what unit `stop` reads, as it crosses the cut before it."""

        def action() -> Action:
            inputs = self._inputs(stop)
            slots = [torch.empty_like(value) for value in inputs]
            return lambda: [slot.copy_(x.detach()) for slot, x in zip(slots, inputs, strict=True)]

        return self._timed(f"copy {self.ends.site.units[stop].name}", action)

    def save(self) -> None:
        """Keep the times."""
        if self._new:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._known, indent=2) + "\n")

    def _timed(self, name: str, action: Callable[[], Action]) -> float:
        """The least time of what `action` returns, unless it is known.

        Whatever else the machine does only adds to a time, and by no means evenly.
        """
        if name not in self._known:
            with self._as_a_worker():
                repeat = action()
                seconds = []
                for _ in range(WARMUP + REPETITIONS):
                    start = self._now()
                    repeat()
                    seconds.append(self._now() - start)
            self._known[name] = min(seconds[WARMUP:])
            self._new = True
        return self._known[name]

    def _training(self, network: nn.Module, call: Callable[[nn.Module], Any]) -> Action:
        """A forward pass, a backward pass from all it made, and an optimizer's step."""
        network = network.to(self.device).train()
        parameters = list(network.parameters())
        optimizer = make_optimizer(self.optim, parameters) if parameters else None

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                made = call(network)
            outputs = [x for x in (made if isinstance(made, tuple) else (made,)) if x.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return step

    def _inputs(self, index: int) -> list[Tensor]:
        specs = self.ends.before(index)
        return [self._values(specs[name]) for name in self.ends.site.units[index].reads]

    def _values(self, spec: ValueSpec) -> Tensor:
        shape = (self.samples, *spec.shape)
        if not spec.dtype.is_floating_point:
            return torch.zeros(shape, dtype=spec.dtype, device=self.device)
        return torch.rand(shape, dtype=spec.dtype, device=self.device).requires_grad_()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    @contextmanager
    def _as_a_worker(self) -> Iterator[None]:
        """With a worker's threads, and nothing drawn from this process's own generator."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            torch.set_num_threads(threads)


def report(
    profile: Profile, layout: Layout, schedule: Schedule, stages_are_modules: bool
) -> list[str]:
    """What was measured and what it made of it, for the user: a table, stages, what to expect."""
    names = [unit.name for unit in profile.ends.site.units]
    lines = ["partition=profile, milliseconds a batch:", f"  {'unit':<14}{'time':>9}  stage"]
    for stage, units in enumerate(layout.stages):
        for index in units:
            lines.append(f"  {names[index]:<14}{1000 * profile.unit(index):9.3f}  {stage}")
    times = []
    for stage, units in enumerate(layout.stages):
        ends = [m for m, module in enumerate(layout.modules) if module.stop - 1 in units]
        own = sum(profile.unit(index) for index in units)
        auxiliary = sum(profile.auxiliary(layout.modules, m) for m in ends if schedule.local)
        copy = profile.copy(units.stop) if units.stop < len(names) else 0.0
        times.append(own + auxiliary + copy)
        parts = f"auxiliary {1000 * auxiliary:.3f}, copy {1000 * copy:.3f}"
        lines.append(f"  stage {stage}: {1000 * times[-1]:.3f} ({parts})")
    if schedule.local and len(times) > 1:
        speed_up = sum(times) / max(times)
        bubble = 1 - speed_up / len(times)
        lines.append(f"  predicted: {speed_up:.2f} x the speed of ll, bubble {bubble:.4f}")
    if stages_are_modules and len(layout.modules) > 1:
        cuts = ",".join(names[module.start] for module in layout.modules[1:])
        lines.append(f"  the training depends on these cuts; local.cuts=[{cuts}] pins them")
    return lines


def source_digest(*targets: object) -> str:
    """A hash of the files in which classes stand: what is measured depends on them."""
    digest = hashlib.sha256()
    for target in targets:
        file = inspect.getsourcefile(type(target))
        if file is not None:
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]
