"""How long the parts of a model take on the device that will train them, and what they keep there.

Everything is measured on copies with weights of their own, so nothing of the run has been trained,
counted or drawn when it begins.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppll_cli.files import write_json
from ppll_cli.runtime.ends import Ends
from ppll_cli.runtime.memory import keep_freed_memory, return_freed_memory
from ppll_cli.runtime.numerics import Numerics
from ppll_cli.runtime.placing import placed, prepare_compiler
from ppll_cli.runtime.prediction.chain import Chain, Part, Work
from ppll_cli.runtime.prediction.fingerprint import digest, structure
from ppll_cli.runtime.prediction.neighbours import neighbours
from ppll_cli.runtime.prediction.timing import Stopwatch, batch_like, repeat, time_criterion
from ppll_cli.settings import Optim
from ppll_cli.values import ValueSpec

FORMAT = 2
"""Of the files in which times are kept; another one is not read."""

COPIES = 4
"""How many units of a kind are measured, each in its place: enough to fill caches as a stage does,
and of a very deep model few enough."""


class Measured(NamedTuple):
    """What a unit, or an auxiliary network with its loss, costs for a batch of some size.

    Attributes:
        forward_s: Its forward pass.
        backward_s: Its backward pass.
        saved_bytes: What it leaves in memory until its backward, its inputs left out.
        params: Its parameters.
    """

    forward_s: float
    backward_s: float
    saved_bytes: int
    params: int


@dataclass
class Profile:
    """Measures units, auxiliary networks, copies and the optimizer's step.

    Args:
        ends: The model and the local method.
        model: The configuration of the model's class.
        optim: Settings of the optimizer.
        samples: Of a batch, or micro-batch.
        device: Where to measure.
        threads: CPU threads, as a worker will have.
        numerics: How to compute.
        compiled: By torch.compile.
        conditions: Whatever else the times depend on, for the cache.
        folder: Where times are kept for the next run.
        neighbours: How many other processes train copies of the model meanwhile.
    """

    ends: Ends
    model: Mapping[str, Any]
    optim: Optim
    samples: int
    device: torch.device
    threads: int
    numerics: Numerics
    compiled: bool
    conditions: Mapping[str, Any]
    folder: Path
    neighbours: int = 0
    _family: dict[tuple[int, int, int], "Profile"] = field(default_factory=dict, repr=False)
    _criteria: dict[tuple[tuple[range, ...], int], tuple[str, frozenset[str]]] = field(
        default_factory=dict, repr=False
    )
    _new: bool = field(default=False, init=False)

    def at(self, samples: int, neighbours: int = 0, threads: int | None = None) -> "Profile":
        """The profile of the same under other conditions; of the same threads if none are given."""
        key = (samples, neighbours, threads or self.threads)
        if key not in self._family:
            self._family[key] = replace(
                self, samples=key[0], neighbours=key[1], threads=key[2], _family=self._family
            )
        return self._family[key]

    def save(self) -> None:
        """Keep the times of this profile and of those that came from it."""
        for profile in (self, *self._family.values()):
            profile._write()

    def unit(self, index: int, first: bool = False) -> Measured:
        """A unit, measured between the others.

        Args:
            index: Of the unit.
            first: It is the first of a module that is trained by a local loss, so that its inputs
                have no gradients.
        """
        self._measure_units()
        return self._measured(self._key(index, first))

    def auxiliary(self, modules: Sequence[range], module: int) -> Measured:
        """A module's auxiliary network and local loss.

        Beside neighbours they are taken to be slower by as much as the units are.
        """
        key, learnt = self._criterion(tuple(modules), module)
        if self.neighbours:
            alone = self.at(self.samples, 0, self.threads).auxiliary(modules, module)
            slower = self.slowdown
            return alone._replace(
                forward_s=slower * alone.forward_s, backward_s=slower * alone.backward_s
            )
        if key not in self._known:
            build, specs = self.ends.criterion(modules, module)
            with self._as_a_worker():
                criterion = build()
                placed(criterion, self.device, self.compiled).train()
                values = {
                    name: self._values(specs[name], name in learnt) for name in criterion.reads
                }
                found = time_criterion(criterion, values, self.ends.site.task, self.numerics)
            self._add(key, **found)
        return self._measured(key)

    def copy(self, size: int) -> float:
        """Seconds to copy so many bytes into a slot."""
        key = f"copy {size}"
        if key not in self._known:
            source, target = torch.ones(2, size, dtype=torch.uint8, device=self.device)

            def step() -> list[float]:
                watch = Stopwatch(self.device)
                watch.mark()
                target.copy_(source)
                watch.mark()
                return watch.spans()

            with self._as_a_worker():
                self._add(key, seconds=repeat(step)[0])
        return self._known[key]["seconds"]

    @property
    def step_s(self) -> float:
        """Seconds of the optimizer's step for one parameter."""
        self._measure_units()
        return self._known["parameter"]["step_s"]

    @property
    def parameter_bytes(self) -> float:
        """Of one parameter: itself, its gradient, and what the optimizer keeps of it."""
        self._measure_units()
        return self._known["parameter"]["bytes"]

    @cached_property
    def slowdown(self) -> float:
        """How many times longer the units take beside neighbours."""
        if not self.neighbours:
            return 1.0
        alone = self.at(self.samples, 0, self.threads)
        here, there = (
            sum(sum(profile.unit(index)[:2]) for index in range(len(self._kinds)))
            for profile in (self, alone)
        )
        return here / there if there else 1.0

    def _measure_units(self) -> None:
        """Measure all kinds of units at once, unless they are known."""
        chosen = self._chosen()
        keys = [self._key(index, first) for index, first in chosen]
        if {"parameter", *keys} <= self._known.keys():
            return
        work = self._work(chosen)
        units = [self.ends.site.units[index] for index, _ in chosen]
        with self._as_a_worker(), neighbours(work, self.neighbours):
            chain = Chain(work, units)
            saved = chain.saved_bytes()
            seconds = repeat(chain.step)
        forwards, backwards = seconds[: len(units)], seconds[len(units) : -1][::-1]
        for key in dict.fromkeys(keys):
            places = [place for place, other in enumerate(keys) if other == key]
            self._add(
                key,
                forward_s=median(forwards[place] for place in places),
                backward_s=median(backwards[place] for place in places),
                saved_bytes=saved[places[0]],
                params=self.ends.traced[chosen[places[0]][0]].cost.params,
            )
        params = max(1, sum(parameter.numel() for parameter in chain.parameters))
        self._add("parameter", step_s=seconds[-1] / params, bytes=chain.bytes_per_parameter())

    def _key(self, index: int, first: bool) -> str:
        """Of a unit; to have no gradients changes nothing for one that reads nothing but data."""
        units, data = self.ends.site.units, self.ends.batch
        differs = first and any(name not in data for name in units[index].reads)
        return f"unit {self._kinds[index]}" + (" first" if differs else "")

    def _chosen(self) -> list[tuple[int, bool]]:
        """The units of the chain, and whether each is measured as the first of its module."""
        seen: Counter[str] = Counter()
        chosen = []
        for index, kind in enumerate(self._kinds):
            if seen[kind] == 0 and self._key(index, True) != self._key(index, False):
                chosen.append((index, True))
            if seen[kind] < COPIES:
                chosen.append((index, False))
            seen[kind] += 1
        return chosen

    def _work(self, chosen: Sequence[tuple[int, bool]]) -> Work:
        parts = []
        for index, first in chosen:
            specs, reads = self.ends.before(index), self.ends.site.units[index].reads
            inputs = tuple(specs[name] for name in reads)
            learnt = tuple(name not in self.ends.batch and not first for name in reads)
            parts.append(Part(index, inputs, learnt))
        return Work(
            model=self.model,
            image=self.ends.site.image,
            task=self.ends.site.task,
            parts=tuple(parts),
            optim=self.optim,
            samples=self.samples,
            device=str(self.device),
            threads=self.threads,
            numerics=self.numerics,
            compiled=self.compiled,
        )

    @cached_property
    def _kinds(self) -> list[str]:
        """For each unit, what it has in common with units that cost the same."""
        kinds = []
        specs = dict(self.ends.batch)
        for unit, made in zip(self.ends.site.units, self.ends.traced, strict=True):
            with torch.device("meta"):
                network = unit.build()
            reads = [(name not in self.ends.batch, specs[name]) for name in unit.reads]
            kinds.append(digest(structure(network), reads, made.outputs, made.cost))
            specs.update(zip(unit.writes, made.outputs, strict=True))
        return kinds

    def _criterion(self, modules: tuple[range, ...], module: int) -> tuple[str, frozenset[str]]:
        """The key of a module's auxiliary network, and what it reads that has gradients."""
        if (modules, module) not in self._criteria:
            build, specs = self.ends.criterion(modules, module)
            with torch.device("meta"):
                unmade = build()
            units = [self.ends.site.units[index] for index in modules[module]]
            learnt = frozenset(name for unit in units for name in unit.writes)
            reads = [(name in learnt, specs[name]) for name in unmade.reads]
            key = f"auxiliary {digest(structure(unmade), reads)}"
            self._criteria[modules, module] = key, learnt
        return self._criteria[modules, module]

    def _values(self, spec: ValueSpec, learnt: bool) -> Tensor:
        values = batch_like(spec, self.samples, self.device)
        if learnt and values.dim() == 4:  # as convolutions make maps
            values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(learnt and values.is_floating_point())

    @contextmanager
    def _as_a_worker(self) -> Iterator[None]:
        """With a worker's threads and memory, and nothing drawn from this process's generator."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        if self.compiled:
            prepare_compiler()
        try:
            with self.numerics.applied(self.device), torch.random.fork_rng(devices=[]):
                yield
        finally:
            torch.set_num_threads(threads)
            return_freed_memory()

    def _measured(self, key: str) -> Measured:
        known = self._known[key]
        saved, params = int(known["saved_bytes"]), int(known["params"])
        return Measured(known["forward_s"], known["backward_s"], saved, params)

    def _add(self, key: str, **record: float) -> None:
        self._known[key] = record
        self._new = True

    @cached_property
    def _known(self) -> dict[str, dict[str, float]]:
        """What was measured, now or before."""
        known: dict[str, dict[str, float]] = {}
        if self._file.exists():
            known = json.loads(self._file.read_text())
        return known

    @cached_property
    def _file(self) -> Path:
        own = {"samples": self.samples, "device": str(self.device), "threads": self.threads}
        own |= {**asdict(self.numerics), "compile": self.compiled, "torch": torch.__version__}
        own |= {"optim": self.optim.name, "clip": self.optim.clip_norm is not None}
        own |= {"momentum": bool(self.optim.momentum), "neighbours": self.neighbours}
        own |= {"model": self.model, "format": FORMAT}
        if self.device.type == "cuda":
            own["device"] = torch.cuda.get_device_name(self.device)
        text = json.dumps({**own, **self.conditions}, sort_keys=True)
        return self.folder / f"{digest(text)}.json"

    def _write(self) -> None:
        if self._new:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._known)
            self._new = False
