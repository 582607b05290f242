"""Measures an upper bound of PPLL's speed: each stage trains on its own inputs, without channels.

The workers are those of the real job, but a receiver always has a next batch, and a sender drops
its messages. So the time excludes all costs of a transport, and the time that stages wait for one
another. It still includes the slowdown of processes that share the machine.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import cycle

import torch
from torch import Tensor

from ppll_cli.job.course import Course, Item, TrainBatch
from ppll_cli.job.job import Job
from ppll_cli.job.links import Header
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.transport import channel
from scripts.benchmarks.paced import Line, PacedCourse, Workers, paced


class NoSender:
    """A channel's sending end that drops all messages."""

    bytes_sent = 0

    def open(self) -> None:
        """Do nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Return True, because there is always room."""
        return True

    def send(self, header: channel.Header, tensors: Mapping[str, Tensor]) -> None:
        """Drop a message."""


class Endless:
    """A channel's receiving end whose messages repeat a few batches of random tensors.

    Args:
        course: Yields the items of the messages. A `PacedCourse` waits for orders.
        specs: Shape and dtype of the tensors of a batch, by name.
        chunk: Number of the chunk that receives the messages.
        slots: Number of different batches. They are received in turn, as from the slots of a ring.
    """

    def __init__(
        self,
        course: Course,
        specs: Mapping[str, ValueSpec],
        chunk: int,
        device: str,
        slots: int,
    ) -> None:
        self._course, self._specs, self._chunk = course, specs, chunk
        self._device, self._slots = device, slots
        self._header: Header | None = None

    def open(self) -> None:
        """Do nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for the course's next item, unless a message is ready. Return True."""
        if self._header is None:
            self._header = Header(next(self._items), chunk=self._chunk)
        return True

    def peek(self) -> Header:
        """Return the header of the next message."""
        assert self._header is not None
        return self._header

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """Return the next message. Only the message of a training batch has tensors."""
        header, self._header = self.peek(), None
        return header, next(self._tensors) if isinstance(header.item, TrainBatch) else {}

    def release(self) -> None:
        """Do nothing."""

    @cached_property
    def _items(self) -> Iterator[Item]:
        return self._course.items(lambda: False)

    @cached_property
    def _tensors(self) -> Iterator[dict[str, Tensor]]:
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
    """A transport that sends nothing. `courses` make the batches of all stages except stage 0."""

    def __init__(self, job: Job, courses: Iterable[PacedCourse]) -> None:
        self.depth = job.depth
        self.wire_dtype: channel.WireDtype | None = None
        lowest = [min(job.layout.of(stage)) for stage in range(1, job.stages)]
        specs = [job.specs[chunk] for chunk in lowest]
        self._ends = zip(courses, specs, lowest, job.devices[1:], strict=True)

    def obstacle(self, size: int, devices: Iterable[str]) -> str | None:
        """Return None, because this transport always works."""
        return None

    def descriptors(self, slots: int, tensors: int) -> int:
        """Return 1, for the pipe of the orders."""
        return 1

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[NoSender, Endless]:
        """Return the two ends of a channel. The n-th call makes the channel to stage n."""
        return NoSender(), Endless(*next(self._ends), slots)


class InTurn(Workers):
    """Workers whose stages train one after another. Each stage is a `paced.Line` of its own."""

    def measure(self, seconds: float) -> float:
        """Train the stages one after another, for about `seconds` in total.

        Return the samples per second: the batch size divided by the sum of the stages' step times.
        """
        for line in self.lines:
            fill, steps, *_ = self.spans(line, seconds / len(self.lines))
            self.time([line], [[fill, steps]])
        return self.job.course.batch_size / sum(line.step_s for line in self.lines)


def unlinked(name: str, job: Job, kind: type[Workers] = Workers) -> Workers:
    """Return the workers of a job with local losses. Each stage gets its own orders."""
    paced_jobs, orders = zip(*(paced(job) for _ in range(job.stages)), strict=True)
    transport = NoTransport(job, [each.course for each in paced_jobs[1:]])
    lines = [Line(each, stage) for stage, each in enumerate(orders)]
    return kind(name, paced_jobs[0], transport, lines)


def random_values(spec: ValueSpec, samples: int) -> Tensor:
    """Return a tensor [samples, *spec.shape] of random values, on the CPU."""
    shape = (samples, *spec.shape)
    if spec.dtype.is_floating_point:
        return torch.rand(shape, dtype=spec.dtype)
    return torch.randint(2, shape, dtype=spec.dtype)  # there are at least two classes
