"""The parts of a run. A part is what was trained between one start or resumption and the next.

Each checkpoint contains the parts until its step. A resumed run takes them from its checkpoint, so
steps that were trained after that checkpoint and are trained again count once.
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
    """The conditions of a part. Times of parts are added up only if all these are equal."""

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
"""A part of a run, as `train.parts` of summary.json lists it.

Fields:
    from: Number of optimizer steps before the part.
    to: Number of optimizer steps after it.
    seconds: How long the part took, evaluations and checkpoints included.
    samples: Number of training samples.
    samples_per_second: Speed in the part's steady state; None if it had none.

The other fields are those of `Conditions`."""


class Worker(TypedDict):
    """What a worker counted in its steady state (see `Totals`), as plain data for JSON.

    Keys of JSON are strings: `instruction_s` has the `repr` of instructions as keys, `bytes_sent`
    the numbers of the receiving stages as text.
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
    """The counts of all workers under the same conditions, in the order of the job's seats."""

    conditions: Conditions
    workers: list[Worker]


class Parts:
    """The parts of a run: the one that is being trained, and those before it.

    Args:
        job: The job of the current part.
        transport: Name of the current part's transport.
        units: Names of the model's units.
        before: The earlier parts.
        counted: What the workers counted in the earlier parts.
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
        if job.settings.recompute:
            self._conditions["recompute"] = True
        self._others: list[Counted] = []
        self._alike: list[Counted] = []
        for each in counted:
            alike = each["conditions"] == self._conditions and self._named_as_today(each)
            (self._alike if alike else self._others).append(each)

    def _named_as_today(self, counted: Counted) -> bool:
        """Return whether all counted instructions are among the job's.

        Older programs named instructions otherwise.
        """
        job, names = self._job, set()
        for stage in range(job.stages):
            for count in job.microbatch_counts():
                names |= {repr(each) for each in job.training(stage, count)}
        return all(each["instruction_s"].keys() <= names for each in counted["workers"])

    def listed(self, step: int, seconds: float, workers: Sequence[Worker]) -> list[Part]:
        """Return all parts; the current one only if it has made a step.

        Args:
            step: Number of optimizer steps of the whole run until now.
            seconds: How long the current part has trained, evaluations and checkpoints included.
            workers: What its workers have counted until now; empty if that is unknown.
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
        """Add up what each worker counted in the current part and in those with equal conditions.

        Args:
            workers: What the workers have counted in the current part; empty if that is unknown.

        Returns:
            The sums of each worker, in the order of the job's seats; empty if nothing is known.
        """
        counts = [each["workers"] for each in self._alike]
        if workers:
            counts.append(list(workers))
        counts = [count for count in counts if len(count) == len(self._job.seats)]
        return [_sum_of_parts(each) for each in zip(*counts, strict=True)]

    def counted(self, workers: Sequence[Worker]) -> list[Counted]:
        """Return the counts of all parts, added up for each set of conditions."""
        alike: Counted = {"conditions": self._conditions, "workers": self.alike(workers)}
        return [*self._others, alike]


def worker(report: Report) -> Worker:
    """Return the counts in a worker's report."""
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
    """Return the samples per second of all replicas of the last stage in the steady state.

    Returns:
        The speed; None if a replica had no steady state.
    """
    last = workers[-replicas:]
    if not last or not all(map(is_steady, last)):
        return None
    return float(sum(each["samples"] / each["wall_s"] for each in last))


def is_steady(worker: Worker) -> bool:
    """Return whether a worker had a steady state."""
    return worker["batches"] > 0 and worker["wall_s"] > 0


def _sum_of_parts(counts: Sequence[Worker]) -> Worker:
    """Add up what the worker of one seat counted in several parts; of memory, take the largest."""
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
    """Return the largest of the numbers that are not None; None if there is none."""
    return max((number for number in numbers if number is not None), default=None)


def _sums(counts: Sequence[Mapping[str, Number]]) -> dict[str, Number]:
    """Add up the values of each key."""
    keys = dict.fromkeys(key for each in counts for key in each)
    return {key: sum(each[key] for each in counts if key in each) for key in keys}
