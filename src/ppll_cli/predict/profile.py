"""Measures time and memory of a model's units on the device that will train them.

A separate process measures copies of the units. So measuring does not change weights or random
numbers of the run, and occupies no device memory afterwards.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

import torch

from ppll_cli.config.settings import usable_cores
from ppll_cli.job.devices import model_of, receiver_of
from ppll_cli.job.ends import Ends
from ppll_cli.leaves.machine import processor
from ppll_cli.predict.chain import Part, Setup, Work
from ppll_cli.predict.fingerprint import criterion_kind, digest, unit_kinds
from ppll_cli.predict.kept import Kept, Record
from ppll_cli.predict.meter import Meter, neighbours
from ppll_cli.predict.requests import time_copy, time_loss, time_units
from ppll_cli.transport.devices import cannot_reach, cannot_share

log = logging.getLogger(__name__)

FORMAT = 6
"""Version of the cache files. Files of another version are not read."""

COPIES = 4
"""Largest number of equal units in a chain: enough to fill caches as a stage does."""

BUSY = (
    "other programs used the cores while the model was measured, so its predicted times may be far "
    "too long; the next command measures again"
)

LEAST_S = 1e-9
"""Smallest time of a forward pass in seconds. It replaces a measured 0, so that one can divide by
it."""


class Measured(NamedTuple):
    """The measured cost of a unit, or of an auxiliary network with its loss, for a batch.

    Attributes:
        saved_bytes: Bytes kept from the forward pass to the backward pass, without the inputs.
        params: Number of elements of the trained parameters.
        recomputed_bytes: Further bytes under `recompute=true`, where the backward pass first
            repeats the forward pass.
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
    """Gives the time and memory that a model's units and auxiliary networks take on a device.

    Each value is measured when it is first asked for, unless the cache files have it. If measuring
    fails, the methods raise the errors of `Meter.ask`.

    Args:
        ends: Describes the model, and the exports and losses of its modules.
        setup: The conditions of a measurement, such as the device and the number of samples.
        source: A hash of the source code of the model and the local method.
        kept: Reads and writes the cache files.
        meter: Measures in a separate process.
        neighbours: How many other processes compute during a measurement, like the other stages of
            a run.
    """

    ends: Ends
    setup: Setup
    source: str
    kept: Kept
    meter: Meter
    neighbours: int = 0
    _family: dict[tuple[int, int, int], "Profile"] = field(default_factory=dict, repr=False)
    _criteria: dict[tuple[tuple[range, ...], int], str] = field(default_factory=dict, repr=False)
    _new: bool = field(default=False, init=False)
    _disturbed: bool = field(default=False, init=False)

    def at(self, samples: int, neighbours: int = 0, threads: int | None = None) -> "Profile":
        """Return a profile of the same model under other conditions.

        Args:
            samples: Number of samples of the measured batch.
            neighbours: How many other processes compute during a measurement.
            threads: Number of CPU threads; None for the number of this profile.
        """
        key = (samples, neighbours, threads or self.setup.threads)
        if key not in self._family:
            setup = replace(self.setup, samples=samples, threads=key[2])
            self._family[key] = replace(self, setup=setup, neighbours=neighbours)
        return self._family[key]

    def save(self) -> None:
        """Write new times of this profile, and of the profiles that `at` returned, to the cache.

        If other programs disturbed a measurement of a profile, its times are not written, and the
        next command measures again.
        """
        new = [profile for profile in (self, *self._family.values()) if profile._new]
        for profile in new:
            if not profile._disturbed:
                profile.kept.write(profile._file, profile._known)
            profile._new = False
        if any(profile._disturbed for profile in new):
            log.warning(BUSY)

    def close(self) -> None:
        """Write new times to the cache, and end the measuring process.

        The next measurement starts a new process.
        """
        self.save()
        self.meter.close()

    def unit(self, index: int, first: bool = False) -> Measured:
        """Return the cost of a unit.

        If `first`, return its cost as the first unit of a module, where its inputs get no
        gradients.
        """
        return self._measured(self._of_units(self._key(index, first)))

    def auxiliary(self, modules: Sequence[range], module: int) -> Measured:
        """Return the cost of a module's auxiliary network and loss."""
        if self.neighbours:  # only units are measured while other processes compute
            alone = self.at(self.setup.samples).auxiliary(modules, module)
            slower = self.slowdown
            return alone._replace(
                forward_s=slower * alone.forward_s, backward_s=slower * alone.backward_s
            )
        cuts = tuple(modules)
        if (cuts, module) not in self._criteria:
            self._criteria[cuts, module] = criterion_kind(self.ends, cuts, module)
        key = f"auxiliary {self._criteria[cuts, module]}"
        if key not in self._known:
            _, specs = self.ends.criterion(cuts, module)
            what = self.setup, cuts, module, specs
            self._add(key, self.meter.ask(self.setup.threads, time_loss, *what))
        return self._measured(self._known[key])

    def copy(self, size: int) -> float:
        """Return the seconds that a copy of `size` bytes to the device of another stage takes."""
        here, (receiver, by_host) = self.setup, self._route
        to = f" to {model_of(receiver)}" if receiver != here.device else ""
        key = f"copy {size}{to}" + (" by the host" if by_host else "")
        if key not in self._known:
            what = size, here.device, receiver, by_host
            self._add(key, {"seconds": self.meter.ask(here.threads, time_copy, *what)})
        return self._known[key]["seconds"]

    @cached_property
    def _route(self) -> tuple[str, bool]:
        device = self.setup.device
        receiver = receiver_of(device)
        if device == "cpu":
            return receiver, False
        ipc = self.setup.settings.transport.get("ipc", True)
        obstacle = cannot_share(device, receiver) or cannot_reach(device, receiver)
        return receiver, not ipc or obstacle is not None

    @property
    def step_s(self) -> float:
        """Seconds of an optimizer step, for each element of a trained parameter."""
        return self._of_units("parameter")["step_s"]

    @property
    def parameter_bytes(self) -> float:
        """Bytes per element of a parameter: the parameter, its gradient and its optimizer state."""
        return self._of_units("parameter")["bytes"]

    @cached_property
    def slowdown(self) -> float:
        """Factor by which the other processes (`neighbours`) slow down the units; 1 without any."""
        alone = self.at(self.setup.samples)
        here, there = (
            sum(sum(profile.unit(index)[:2]) for index in range(len(self._kinds)))
            for profile in (self, alone)
        )
        return here / there

    def halves(self, index: int) -> tuple[float, float]:
        """Return the seconds that a unit takes in `BackwardInput` and in `BackwardWeight`."""
        known = self._of_units(f"halves of {self._key(index, False)}", split=True)
        return known["input_s"], known["weight_s"]

    def _of_units(self, key: str, split: bool = False) -> Record:
        if key not in self._known:
            self._measure_units(split)
        return self._known[key]

    def _measure_units(self, split: bool) -> None:
        chosen = self._chosen()
        work = self._work(chosen, split)
        with neighbours(work, self.neighbours):
            records, optimizer = self.meter.ask(self.setup.threads, time_units, work)
        if not split:
            self._add("parameter", optimizer)
        equal: dict[str, list[Record]] = {}
        for each, record in zip(chosen, records, strict=True):
            key = ("halves of " if split else "") + self._key(*each)
            equal.setdefault(key, []).append(record)
        for key, found in equal.items():
            times = [name for name in found[0] if name.endswith("_s")]
            medians = {name: median(record[name] for record in found) for name in times}
            self._add(key, found[0] | medians)

    def _key(self, index: int, first: bool) -> str:
        units, data = self.ends.site.units, self.ends.batch
        # A unit that reads only the batch never computes gradients of inputs, `first` or not.
        differs = first and any(name not in data for name in units[index].reads)
        return f"unit {self._kinds[index]}" + (" first" if differs else "")

    def _chosen(self) -> list[tuple[int, bool]]:
        seen: Counter[str] = Counter()
        chosen = []
        for index, kind in enumerate(self._kinds):
            if seen[kind] == 0 and self._key(index, True) != self._key(index, False):
                chosen.append((index, True))
            if seen[kind] < COPIES:
                chosen.append((index, False))
            seen[kind] += 1
        return chosen

    def _work(self, chosen: Sequence[tuple[int, bool]], split: bool = False) -> Work:
        parts = []
        for index, first in chosen:
            specs, reads = self.ends.before[index], self.ends.site.units[index].reads
            inputs = tuple(specs[name] for name in reads)
            needs_gradient = tuple(name not in self.ends.batch and not first for name in reads)
            parts.append(Part(index, inputs, needs_gradient))
        return Work(self.setup, tuple(parts), split)

    @cached_property
    def _kinds(self) -> list[str]:
        return unit_kinds(self.ends)

    def _measured(self, record: Record) -> Measured:
        values: dict[str, Any] = record
        found = Measured(**values)
        return found._replace(forward_s=max(LEAST_S, found.forward_s))

    def _add(self, key: str, record: Record) -> None:
        self._known[key] = record
        self._new = True
        # With more threads than cores, the threads wait for one another in a run, too. So this
        # does not count as a disturbance.
        self._disturbed |= self.meter.disturbed and self.setup.threads <= usable_cores()

    @cached_property
    def _known(self) -> dict[str, Record]:
        return self.kept.read(self._file)

    @cached_property
    def _file(self) -> str:
        here, settings, optim = self.setup, self.setup.settings, self.setup.settings.optim
        specs = here.site.input_spec.specs
        own = settings.model_dump(include={"precision", "deterministic", "compile", "recompute"})
        own |= {"samples": here.samples, "device": model_of(here.device), "threads": here.threads}
        own |= {"optim": optim.name, "clip": optim.clip_norm is not None}
        own |= {"momentum": bool(optim.momentum), "neighbours": self.neighbours}
        own |= {"model": settings.model, "local": here.local, "torch": torch.__version__}
        own |= {"inputs": {name: str(spec) for name, spec in specs.items()}}
        own |= {"source": self.source, "processor": processor(), "format": FORMAT}
        return f"{digest(json.dumps(own, sort_keys=True))}.json"
