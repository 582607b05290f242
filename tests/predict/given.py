"""Profiles with given times, and jobs whose speed is predicted from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ppll_cli.config import settings
from ppll_cli.config.targets import make
from ppll_cli.job.job import Job
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.predict.profile import Measured
from ppll_cli.predict.speed import Prediction
from ppll_cli.prepare.preparation import assemble
from ppll_cli.prepare.subject import Subject, examine
from tests.conftest import compose_config

DATA = ["data=synthetic", "data.size=8", "data.train_samples=53", "data.test_samples=7"]
SMALL = [*DATA, "batch_size=8", "model.dim=16", "model.depth=4", "model.heads=2", "device=cpu"]
SMALL += ["threads=1"]
UNITS = 6
TOKENS = 5 * 16 * 4
"""Bytes that cross a cut for one sample, without the label."""

NOTHING = Measured(0.0, 0.0, 0, 0)


@dataclass
class Source:
    """A profile whose times are given: for each unit, seconds of forward and backward."""

    forward_s: Sequence[float] = (1.0,) * UNITS
    backward_s: Sequence[float] = (2.0,) * UNITS
    loss: Measured = NOTHING
    copy_s: float = 0.0
    step_s: float = 0.0
    spared_s: float = 0.0
    recomputed: int = 0
    frozen: int = 0  # bytes of each unit's parameters that are not trained
    slower: float = 1.0
    parameter_bytes: float = 16.0
    samples: int = 8
    asked: list[tuple[int, int]] = field(default_factory=list)

    def at(self, samples: int, neighbours: int = 0) -> "Source":
        self.asked.append((samples, neighbours))
        share = samples / 8 * (self.slower if neighbours else 1.0)
        forward_s, backward_s = (
            [share * seconds for seconds in times] for times in (self.forward_s, self.backward_s)
        )
        loss = self.loss._replace(
            forward_s=share * self.loss.forward_s, backward_s=share * self.loss.backward_s
        )
        return Source(
            forward_s,
            backward_s,
            loss,
            self.copy_s,
            self.step_s,
            spared_s=share * self.spared_s,
            recomputed=self.recomputed,
            frozen=self.frozen,
            samples=samples,
        )

    def unit(self, index: int, first: bool = False) -> Measured:
        saved, backward_s = self.samples * 100 * (index + 1), self.backward_s[index]
        backward_s -= first * self.spared_s
        params, again = 10 * (index + 1), self.samples * self.recomputed * (index + 1)
        return Measured(self.forward_s[index], backward_s, saved, params, again, self.frozen)

    def auxiliary(self, modules: Sequence[range], module: int) -> Measured:
        return self.loss

    def halves(self, index: int) -> tuple[float, float]:
        """Return a quarter of the backward for the inputs, and the rest for the parameters."""
        return self.backward_s[index] / 4, self.backward_s[index] * 3 / 4

    def copy(self, size: int) -> float:
        return self.copy_s


@cache
def config(schedule: str) -> dict[str, Any]:
    return compose_config([*SMALL, f"schedule={schedule}"])[0]


@cache
def subject() -> Subject:
    return examine(settings.parse(config("bp")))


def job(
    schedule: str,
    gpus: int,
    microbatches: int | None = None,
    modules: int | None = None,
    replicas: int = 1,
    per_machine: int | None = None,
) -> Job:
    chosen = {**config(schedule), "gpus": gpus, "replicas": replicas}
    if microbatches is not None:
        chosen["schedule"] = {**chosen["schedule"], "microbatches": microbatches}
    chosen["local"] = {**chosen["local"], "modules": modules}
    parsed = settings.parse(chosen)
    made: Schedule = make("schedule", parsed.schedule)
    devices = ("cpu",) * (replicas if made.one_stage else gpus)
    found = assemble(parsed, subject(), made, devices, None, "unused", [])
    homes = tuple(n // (per_machine or gpus) for n in range(len(devices)))
    return replace(found, homes=homes)


def batch_s(found: Prediction) -> float:
    return 8 / found.samples_per_second
