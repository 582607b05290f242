"""The parts of a run: what each of the processes that trained it, one after another, did.

Each checkpoint carries those until then. Work that is done again after a kill is in none of them,
because the run goes on from a checkpoint and what that one carries.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import (
    Any,
    NotRequired,  # pydantic needs these before Python 3.12
    TypeVar,
)

from typing_extensions import TypedDict

from ppll_cli.job.job import Job

Report = Mapping[str, Any]
Number = TypeVar("Number", int, float)


class Conditions(TypedDict):
    """What has to be the same for speeds and shares of time to be added up."""

    gpus: int
    devices: list[str]
    threads: int
    transport: str
    stages: list[str]  # the units that start stages 2 and up
    recompute: NotRequired[bool]  # only where it is on: older programs have counted without it


Part = TypedDict(
    "Part",
    {
        "from": int,
        "to": int,
        "seconds": float,
        "samples": int,
        "samples_per_second": float | None,
        "gpus": int,
        "devices": list[str],
        "threads": int,
        "transport": str,
        "stages": NotRequired[list[str]],
        "recompute": NotRequired[bool],
    },
)
"""A part, as `train.parts` of summary.json lists it: its steps, how long they took with evaluations
and checkpoints, their samples, the speed in its steady state, and under which conditions."""


class Worker(TypedDict):
    """What a worker counted in its steady state, as `Totals` has it.

    Instructions go by their `repr`, and the stages that something was sent to by their numbers'
    digits: keys of JSON are strings.
    """

    batches: int
    samples: int
    wall_s: float
    spent_s: dict[str, float]
    instruction_s: dict[str, float]
    bytes_sent: dict[str, int]
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None


class Counted(TypedDict):
    """What the workers counted under the same conditions, in the order of the job's seats."""

    conditions: Conditions
    workers: list[Worker]


class Parts:
    """The parts of a run, the last of which is being trained.

    Args:
        job: The last part.
        transport: Name of its transport.
        units: Names of the model's units.
        before: The parts before it.
        counted: What workers counted in those.
    """

    def __init__(
        self,
        job: Job,
        transport: str,
        units: Sequence[str],
        before: Iterable[Part] = (),
        counted: Iterable[Counted] = (),
    ) -> None:
        self._job, self._before = job, list(before)
        self._conditions: Conditions = {
            "gpus": len(job.seats),
            "devices": list(job.devices),
            "threads": job.threads,
            "transport": transport,
            "stages": [units[cut] for cut in job.layout.cuts()],
        }
        if job.recompute:
            self._conditions["recompute"] = True
        self._others: list[Counted] = []
        self._alike: list[Counted] = []
        for each in counted:
            alike = each["conditions"] == self._conditions and self._named_as_today(each)
            (self._alike if alike else self._others).append(each)

    def _named_as_today(self, counted: Counted) -> bool:
        """Whether the counted instructions have today's names; older programs had others."""
        job, names = self._job, set()
        for stage in range(job.stages):
            for count in job.microbatch_counts():
                names |= {repr(each) for each in job.training(stage, count)}
        return all(each["instruction_s"].keys() <= names for each in counted["workers"])

    def listed(self, step: int, seconds: float, workers: Sequence[Worker]) -> list[Part]:
        """All parts.

        Args:
            step: Optimizer steps of the whole run until now.
            seconds: For how long this part has trained, evaluation and checkpoints included.
            workers: What its workers have counted until now; empty where that is not known.
        """
        start, course = self._job.start, self._job.course
        if step <= start:  # nothing was trained
            return list(self._before)
        this: Part = {
            "from": start,
            "to": step,
            "seconds": seconds,
            "samples": course.samples_until(step) - course.samples_until(start),
            "samples_per_second": rate(workers, self._job.replicas),
            **self._conditions,
        }
        return [*self._before, this]

    def alike(self, workers: Sequence[Worker]) -> list[Worker]:
        """What workers have counted in all parts under the same conditions as this one."""
        counts = [each["workers"] for each in self._alike]
        if workers:
            counts.append(list(workers))
        counts = [count for count in counts if len(count) == len(self._job.seats)]
        return [_added(each) for each in zip(*counts, strict=True)]

    def counted(self, workers: Sequence[Worker]) -> list[Counted]:
        """What workers have counted in all parts."""
        alike: Counted = {"conditions": self._conditions, "workers": self.alike(workers)}
        return [*self._others, alike]


def worker(report: Report) -> Worker:
    """What a worker's report says that it has counted."""
    return {
        "batches": report["batches"],
        "samples": report["samples"],
        "wall_s": report["wall_s"],
        "spent_s": dict(report["spent_s"]),
        "instruction_s": {repr(each): s for each, s in report["instruction_s"].items()},
        "bytes_sent": {str(peer): sent for peer, sent in report["bytes_sent"].items()},
        "peak_memory_bytes": report["peak_memory_bytes"] if report["batches"] else None,
        "peak_reserved_bytes": report["peak_reserved_bytes"] if report["batches"] else None,
    }


def rate(workers: Sequence[Worker], replicas: int) -> float | None:
    """Samples per second of the last stage in the steady state, all its replicas together."""
    last = workers[-replicas:]
    if not last or not all(map(is_steady, last)):
        return None
    return float(sum(each["samples"] / each["wall_s"] for each in last))


def is_steady(worker: Worker) -> bool:
    """Whether a worker had a steady state."""
    return worker["batches"] > 0 and worker["wall_s"] > 0


def _added(counts: Sequence[Worker]) -> Worker:
    """What the worker of one seat counted in several parts."""
    return {
        "batches": sum(each["batches"] for each in counts),
        "samples": sum(each["samples"] for each in counts),
        "wall_s": sum(each["wall_s"] for each in counts),
        "spent_s": _sums([each["spent_s"] for each in counts]),
        "instruction_s": _sums([each["instruction_s"] for each in counts]),
        "bytes_sent": _sums([each["bytes_sent"] for each in counts]),
        "peak_memory_bytes": _most([each["peak_memory_bytes"] for each in counts]),
        "peak_reserved_bytes": _most([each["peak_reserved_bytes"] for each in counts]),
    }


def _most(numbers: Sequence[int | None]) -> int | None:
    """The largest of the known numbers; None where none is known."""
    return max((number for number in numbers if number is not None), default=None)


def _sums(counts: Sequence[Mapping[str, Number]]) -> dict[str, Number]:
    """Sums by key."""
    keys = dict.fromkeys(key for each in counts for key in each)
    return {key: sum(each[key] for each in counts if key in each) for key in keys}
