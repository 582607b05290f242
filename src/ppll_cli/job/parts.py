"""The parts of a run. Each start or resumption of the run begins a new part.

A checkpoint records all parts up to its step. A resumed run reads them from the checkpoint. It does
the steps after the checkpoint again; these steps count only in the new part.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NotRequired, TypeVar

from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from ppll_cli.job.job import Job

Number = TypeVar("Number", int, float)


class Conditions(TypedDict):
    """Devices and settings that determine the speed of a part of a run.

    Times of two parts are added only if all these values are equal.
    """

    gpus: int  # number of workers
    devices: list[str]
    threads: int
    transport: str
    stages: list[str]  # name of the first unit after each boundary between two stages
    recompute: NotRequired[bool]  # present only if true, because older programs did not record it


Part = TypedDict(
    "Part",
    {
        "from": int,  # number of optimizer steps done before the part
        "to": int,  # number of optimizer steps done at the part's end
        "seconds": float,  # including evaluations and checkpoints
        "samples": int,  # number of training samples
        "samples_per_second": float | None,  # in the part's steady state; None if there was none
        "gpus": int,
        "devices": list[str],
        "threads": int,
        "transport": str,
        "stages": NotRequired[list[str]],
        "recompute": NotRequired[bool],
    },
)
"""A part of a run, as `train.parts` of summary.json lists it."""


class Worker(TypedDict):
    """A worker's counts and times in the steady state (see `Totals`), as plain data for JSON.

    The keys of `instruction_s` are the `repr` of instructions. The keys of `bytes_sent` are numbers
    of stages that receive from the worker, as text.
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
    """Each worker's counts and times, summed over parts that have equal `conditions`."""

    conditions: Conditions
    workers: list[Worker]  # in the order of `Job.seats`


class Parts:
    """The current part and the earlier parts of a run.

    Args:
        job: What the run computes in the current part, and where.
        transport: Name of the current part's transport.
        before: The earlier parts.
        counted: The workers' counts and times in the earlier parts.
    """

    def __init__(
        self,
        job: Job,
        transport: str,
        before: Iterable[Part] = (),
        counted: Iterable[Counted] = (),
    ) -> None:
        self._job, self._before = job, list(before)
        self._conditions: Conditions = {
            "gpus": len(job.seats),
            "devices": list(job.devices),
            "threads": job.threads,
            "transport": transport,
            "stages": [job.names[cut] for cut in job.layout.cuts()],
        }
        if job.settings.recompute:
            self._conditions["recompute"] = True
        self._others: list[Counted] = []
        self._alike: list[Counted] = []
        for each in counted:
            alike = each["conditions"] == self._conditions and self._named_as_today(each)
            (self._alike if alike else self._others).append(each)

    def _named_as_today(self, counted: Counted) -> bool:
        # Older versions of the program named instructions differently; such times cannot be added.
        job, names = self._job, set()
        for stage in range(job.stages):
            for count in job.microbatch_counts():
                names |= {repr(each) for each in job.training(stage, count)}
        return all(each["instruction_s"].keys() <= names for each in counted["workers"])

    def listed(self, step: int, seconds: float, workers: Sequence[Worker]) -> list[Part]:
        """Return the earlier parts, and the current part if it has steps.

        Args:
            step: Number of optimizer steps that the run has done so far.
            seconds: Duration of the current part, including evaluations and checkpoints.
            workers: The workers' counts and times in the current part; empty if unknown.
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
        """Return each worker's counts, summed over the current part and comparable earlier parts.

        An earlier part is comparable if its `Conditions` equal those of the current part, and if
        this version of the program still uses the names of instructions in its counts. Peaks of
        memory are not summed; the largest is returned.

        Args:
            workers: The counts in the current part, in the order of `Job.seats`; empty if unknown.

        Returns:
            The sums in the same order; empty if no counts are known.
        """
        counts = [each["workers"] for each in self._alike]
        if workers:
            counts.append(list(workers))
        counts = [count for count in counts if len(count) == len(self._job.seats)]
        return [_sum_of_parts(each) for each in zip(*counts, strict=True)]

    def counted(self, workers: Sequence[Worker]) -> list[Counted]:
        """Return the counts of all parts for a checkpoint; counts of comparable parts are summed.

        `workers` has the counts in the current part, as in `alike`.
        """
        alike: Counted = {"conditions": self._conditions, "workers": self.alike(workers)}
        return [*self._others, alike]


def rate(workers: Sequence[Worker], replicas: int) -> float | None:
    """Return the samples per second of the pipeline: the sum over replicas of the last stage.

    `workers` are in the order of `Job.seats`. Return None if one of these replicas had no steady
    state, or if there are no workers.
    """
    last = workers[-replicas:]
    if not last or not all(map(is_steady, last)):
        return None
    return float(sum(each["samples"] / each["wall_s"] for each in last))


def is_steady(worker: Worker) -> bool:
    """Return whether a worker had a steady state."""
    return worker["batches"] > 0 and worker["wall_s"] > 0


def _sum_of_parts(counts: Sequence[Worker]) -> Worker:
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
    return max((number for number in numbers if number is not None), default=None)


def _sums(counts: Sequence[Mapping[str, Number]]) -> dict[str, Number]:
    keys = dict.fromkeys(key for each in counts for key in each)
    return {key: sum(each[key] for each in counts if key in each) for key in keys}
