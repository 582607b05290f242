"""Measures time and memory of a model's units on the device that will train them.

A separate process measures copies of the units. So measuring changes no weights or random numbers
of the run, and occupies no device memory afterwards.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

import torch

from ppll_cli.job.devices import model_of
from ppll_cli.job.ends import Ends
from ppll_cli.predict.chain import Part, Setup, Work
from ppll_cli.predict.fingerprint import criterion_kind, digest, unit_kinds
from ppll_cli.predict.kept import Kept, Record
from ppll_cli.predict.meter import Meter
from ppll_cli.predict.neighbours import neighbours
from ppll_cli.predict.requests import UnitTimes, time_copy, time_loss, time_units
from ppll_cli.transport.devices import cannot_reach, cannot_share

FORMAT = 6
"""Version of the cache files. Files of another version are not read."""

COPIES = 4
"""Largest number of equal units in a chain: enough to fill caches as a stage does."""

LEAST_S = 1e-9
"""Smallest time of a forward pass in seconds. It replaces a measured 0, so that one can divide by
it."""


class Measured(NamedTuple):
    """The measured cost of a unit, or of an auxiliary network with its loss, for a batch.

    Attributes:
        saved_bytes: Bytes kept in memory until the backward pass, without inputs.
        params: Number of trained parameters.
        recomputed_bytes: Bytes that the backward pass computes again, in addition to `saved_bytes`.
        frozen_bytes: Bytes of the parameters that are not trained.
    """

    forward_s: float
    backward_s: float
    saved_bytes: int
    params: int
    recomputed_bytes: int = 0
    frozen_bytes: int = 0


@dataclass
class Profile:
    """Measures units, auxiliary networks, copies and the optimizer's step.

    Args:
        ends: The model and the local method.
        local: Configuration of the local method's class.
        receiver: The device to which messages are copied; the measured device if there is no other.
        conditions: Other conditions on which the times depend, for the name of the cache file.
        neighbours: How many other processes keep CPU cores busy during a measurement.
    """

    ends: Ends
    setup: Setup
    local: Mapping[str, Any]
    receiver: str
    conditions: Mapping[str, Any]
    kept: Kept
    meter: Meter
    neighbours: int = 0
    _family: dict[tuple[int, int, int], "Profile"] = field(default_factory=dict, repr=False)
    _criteria: dict[tuple[tuple[range, ...], int], tuple[str, frozenset[str]]] = field(
        default_factory=dict, repr=False
    )
    _new: bool = field(default=False, init=False)

    def at(self, samples: int, neighbours: int = 0, threads: int | None = None) -> "Profile":
        """Return a profile under other conditions; `threads=None` keeps the number of threads."""
        key = (samples, neighbours, threads or self.setup.threads)
        if key not in self._family:
            setup = replace(self.setup, samples=samples, threads=key[2])
            self._family[key] = replace(
                self, setup=setup, neighbours=neighbours, _family=self._family
            )
        return self._family[key]

    def save(self) -> None:
        """Write the times of this profile, and of the profiles that `at` returned, to the cache."""
        for profile in (self, *self._family.values()):
            if profile._new:
                profile.kept.write(profile._file, profile._known)
                profile._new = False

    def close(self) -> None:
        """End the measuring process; the next measurement starts a new one."""
        self.meter.close()

    def unit(self, index: int, first: bool = False) -> Measured:
        """Return the cost of a unit, measured in a chain of units.

        If `first` is True, the unit is the first of a module with a local loss, and its inputs get
        no gradients.
        """
        self._measure_units()
        return self._measured(self._key(index, first))

    def auxiliary(self, modules: Sequence[range], module: int) -> Measured:
        """Return the cost of a module's auxiliary network and loss.

        It is measured alone. If there are `neighbours`, its times are multiplied by `slowdown`.
        """
        key, with_gradient = self._criterion(tuple(modules), module)
        if self.neighbours:
            alone = self.at(self.setup.samples).auxiliary(modules, module)
            slower = self.slowdown
            return alone._replace(
                forward_s=slower * alone.forward_s, backward_s=slower * alone.backward_s
            )
        if key not in self._known:
            _, specs = self.ends.criterion(modules, module)
            here, features = self.setup, self.ends.site.features
            what = here, self.local, features, modules, module, specs, with_gradient
            self._add(key, **self.meter.ask(here.threads, time_loss, *what))
        return self._measured(key)

    def copy(self, size: int) -> float:
        """Return the seconds that a copy of `size` bytes to the next stage takes."""
        to = f" to {model_of(self.receiver)}" if self.receiver != self.setup.device else ""
        key = f"copy {size}{to}" + (" by the host" if self._by_host else "")
        if key not in self._known:
            here = self.setup
            how = size, here.device, self.receiver, self._by_host
            self._add(key, seconds=self.meter.ask(here.threads, time_copy, *how))
        return self._known[key]["seconds"]

    @cached_property
    def _by_host(self) -> bool:
        """Whether the ring transport copies between the two CUDA devices through host memory."""
        if self.setup.device == "cpu":
            return False
        return (cannot_share() or cannot_reach(self.setup.device, self.receiver)) is not None

    @property
    def step_s(self) -> float:
        """Seconds of the optimizer's step for one parameter."""
        self._measure_units()
        return self._known["parameter"]["step_s"]

    @property
    def parameter_bytes(self) -> float:
        """Bytes of a trained parameter with its gradient and its optimizer state."""
        self._measure_units()
        return self._known["parameter"]["bytes"]

    @cached_property
    def slowdown(self) -> float:
        """Factor by which `neighbours` (other processes) slow down the units; 1 without any."""
        if not self.neighbours:
            return 1.0
        alone = self.at(self.setup.samples)
        here, there = (
            sum(sum(profile.unit(index)[:2]) for index in range(len(self._kinds)))
            for profile in (self, alone)
        )
        return here / there if there else 1.0

    def halves(self, index: int) -> tuple[float, float]:
        """Return the seconds of a split backward pass's halves: for inputs and for parameters."""
        key = f"halves of {self._key(index, False)}"
        if key not in self._known:
            found, places = self._timed(self._chosen(), split=True)
            for each, own in places.items():
                self._add(
                    f"halves of {each}",
                    input_s=median(found.backward_s[place] for place in own),
                    weight_s=median(found.weight_s[place] for place in own),
                )
        known = self._known[key]
        return known["input_s"], known["weight_s"]

    def _measure_units(self) -> None:
        """Make sure that the costs of all kinds of units are known; if not, measure them all."""
        chosen = self._chosen()
        if {"parameter", *(self._key(*each) for each in chosen)} <= self._known.keys():
            return
        found, places = self._timed(chosen)
        for key, own in places.items():
            self._add(
                key,
                forward_s=median(found.forward_s[place] for place in own),
                backward_s=median(found.backward_s[place] for place in own),
                saved_bytes=found.saved[own[0]].kept,
                recomputed_bytes=found.saved[own[0]].recomputed,
                params=found.params[own[0]],
                frozen_bytes=found.frozen_bytes[own[0]],
            )
        step_s = found.step_s / max(1, sum(found.params))
        self._add("parameter", step_s=step_s, bytes=found.bytes_per_parameter)

    def _timed(
        self, chosen: Sequence[tuple[int, bool]], split: bool = False
    ) -> tuple[UnitTimes, dict[str, list[int]]]:
        """Run the chosen units one after another, and time each of them.

        Also return, by key (see `_key`), the positions in `chosen` of the units with this key.
        """
        work = replace(self._work(chosen), split=split)
        with neighbours(work, self.neighbours):
            found = self.meter.ask(self.setup.threads, time_units, work)
        places: dict[str, list[int]] = {}
        for place, each in enumerate(chosen):
            places.setdefault(self._key(*each), []).append(place)
        return found, places

    def _key(self, index: int, first: bool) -> str:
        """Return the key of a unit's record. The method `unit` explains `first`.

        If a unit reads only the batch, its inputs never get gradients, so `first` is ignored.
        """
        units, data = self.ends.site.units, self.ends.batch
        differs = first and any(name not in data for name in units[index].reads)
        return f"unit {self._kinds[index]}" + (" first" if differs else "")

    def _chosen(self) -> list[tuple[int, bool]]:
        """Return the index of each unit to measure, and whether it is measured as a first unit."""
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
            needs_gradient = tuple(name not in self.ends.batch and not first for name in reads)
            parts.append(Part(index, inputs, needs_gradient))
        return Work(self.setup, tuple(parts))

    @cached_property
    def _kinds(self) -> list[str]:
        """A text for each unit, equal for units with the same time and memory."""
        return unit_kinds(self.ends)

    def _criterion(self, modules: tuple[range, ...], module: int) -> tuple[str, frozenset[str]]:
        """Return the key of an auxiliary network's record, and names of tensors with gradients.

        The module's units write these tensors.
        """
        if (modules, module) not in self._criteria:
            units = [self.ends.site.units[index] for index in modules[module]]
            with_gradient = frozenset(name for unit in units for name in unit.writes)
            key = f"auxiliary {criterion_kind(self.ends, modules, module, with_gradient)}"
            self._criteria[modules, module] = key, with_gradient
        return self._criteria[modules, module]

    def _measured(self, key: str) -> Measured:
        record: Mapping[str, Any] = self._known[key]
        found = Measured(**record)
        return found._replace(forward_s=max(LEAST_S, found.forward_s))

    def _add(self, key: str, **record: float) -> None:
        self._known[key] = record
        self._new = True

    @cached_property
    def _known(self) -> dict[str, Record]:
        return self.kept.read(self._file)

    @cached_property
    def _file(self) -> str:
        here, optim = self.setup, self.setup.optim
        own = {"samples": here.samples, "device": model_of(here.device), "threads": here.threads}
        own |= {**asdict(here.numerics), "compile": here.compiled, "torch": torch.__version__}
        own |= {"optim": optim.name, "clip": optim.clip_norm is not None}
        own |= {"momentum": bool(optim.momentum), "neighbours": self.neighbours}
        own |= {"model": here.model, "local": self.local, "recompute": here.recompute}
        own |= {"format": FORMAT}
        text = json.dumps({**own, **self.conditions}, sort_keys=True)
        return f"{digest(text)}.json"
