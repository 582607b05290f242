"""The bound: every stage of PPLL loops on an input of its own, and nothing travels.

The workers are those of the real job, only their channels are not: a receiver always has the next
batch, the same few tensors over and over, and a sender always has room. What is left out is all
that a transport could cost, waiting for one another included; what two processes take from each
other by working at the same time is still there.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import cycle

import torch
from torch import Tensor

from ppll_cli.job.course import Item, TrainBatch
from ppll_cli.job.job import Job
from ppll_cli.job.links import Header
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.transport import channel
from scripts.benchmarks.paced import Line, PacedCourse, Workers, paced


class NoSender:
    """The producer's end: what is sent is gone."""

    bytes_sent = 0

    def open(self) -> None:
        """Nothing."""

    def wait(self, timeout_s: float) -> bool:
        """There is always room."""
        return True

    def send(self, header: channel.Header, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""


class Endless:
    """The consumer's end: what is received was there from the beginning.

    Args:
        course: What comes, and when.
        specs: What a batch brings.
        chunk: The chunk that it comes to.
        device: Where its tensors are.
        slots: How many batches there are, to be received in turn, as they would lie in a ring.
    """

    def __init__(
        self,
        course: PacedCourse,
        specs: Mapping[str, ValueSpec],
        chunk: int,
        device: str,
        slots: int,
    ) -> None:
        self._course, self._specs, self._chunk = course, specs, chunk
        self._device, self._slots = device, slots
        self._header: Header | None = None

    def open(self) -> None:
        """Nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for an order where the last one is done; then there is always a message."""
        if self._header is None:
            self._header = Header(next(self._items), chunk=self._chunk)
        return True

    def peek(self) -> channel.Header:
        """The header of the next message."""
        return self._header

    def receive(self) -> tuple[channel.Header, dict[str, Tensor]]:
        """The next message; marks bring no tensors."""
        header, self._header = self._header, None
        assert header is not None
        return header, next(self._tensors) if isinstance(header.item, TrainBatch) else {}

    def release(self) -> None:
        """Nothing."""

    @cached_property
    def _items(self) -> Iterator[Item]:
        return self._course.items(lambda: False)

    @cached_property
    def _tensors(self) -> Iterator[dict[str, Tensor]]:
        """Made in the worker, where they are used."""
        samples = self._course.batch_size
        return cycle(
            [
                {
                    name: random_values(spec, samples).to(self._device)
                    for name, spec in self._specs.items()
                }
                for _ in range(self._slots)
            ]
        )


class NoTransport:
    """Channels through which nothing travels.

    Args:
        job: Whose channels they stand for.
        courses: What comes to each stage but the first.
    """

    def __init__(self, job: Job, courses: Iterable[PacedCourse]) -> None:
        self.depth = job.depth
        self.wire_dtype: channel.WireDtype | None = None
        lowest = [min(job.layout.of(stage)) for stage in range(1, job.stages)]
        specs = [job.specs[chunk] for chunk in lowest]
        self._ends = zip(courses, specs, lowest, job.devices[1:], strict=True)

    def obstacle(self, size: int, devices: Iterable[str]) -> str | None:
        """Nothing is in its way."""
        return None

    def descriptors(self, slots: int, tensors: int) -> int:
        """The pipe of the orders."""
        return 1

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[NoSender, Endless]:
        """The ends of the next channel, in the order of the stages."""
        return NoSender(), Endless(*next(self._ends), slots)


class InTurn(Workers):
    """Workers of which one line trains after another."""

    def measure(self, seconds: float) -> float:
        """Samples per second."""
        for line in self.lines:
            fill, steps, *_ = self.spans(line, seconds / len(self.lines))
            self.time([line], [[fill, steps]])
        return self.job.course.batch_size / sum(line.step_s for line in self.lines)


def unlinked(name: str, job: Job, kind: type[Workers] = Workers) -> Workers:
    """The stages of a job of local learning, each on orders of its own.

    Args:
        name: Named in errors.
        job: The run.
        kind: How they are measured.
    """
    paced_jobs, orders = zip(*(paced(job) for _ in range(job.stages)), strict=True)
    transport = NoTransport(job, [each.course for each in paced_jobs[1:]])
    lines = [Line(each, stage) for stage, each in enumerate(orders)]
    return kind(name, paced_jobs[0], transport, lines)


def random_values(spec: ValueSpec, samples: int) -> Tensor:
    """A tensor that can stand for a value of so many samples, on the CPU."""
    shape = (samples, *spec.shape)
    if spec.dtype.is_floating_point:
        return torch.rand(shape, dtype=spec.dtype)
    return torch.randint(2, shape, dtype=spec.dtype)  # there are two classes at the least
