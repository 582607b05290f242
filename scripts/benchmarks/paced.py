"""Real workers of a job that train when they are told to, and rest in between.

The course of such a job waits on a pipe for an order: lengths of spans of training batches, with a
mark behind each span. A mark travels behind the batches like any other and makes each stage report;
nothing is drained for it. So the time between two reports of the last stage is that of exactly so
many periods of the running pipeline, whichever of its stages is the slowest one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from multiprocessing import Pipe, active_children
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter

from ppll_cli.job.course import Course, Item, TrainBatch
from ppll_cli.job.job import Job
from ppll_cli.launch.launcher import Ending, Report, launch
from ppll_cli.pipeline.instructions import End, Evaluate
from ppll_cli.transport.channel import Transport
from scripts.benchmarks.runs import RunFailedError

LIMIT_S = 60.0
"""How long anything may take that is waited for."""

EPOCH = 50
"""Steps of an epoch, and of `log_every`: workers report by themselves at its end alone."""

WARM_UP = (3, 3)
"""Steps before anything is measured: until memory is reused, and to see how long a step takes."""

LEAST_STEPS = 3
"""A measurement has so many at the least."""


@dataclass(frozen=True, kw_only=True)
class PacedCourse(Course):
    """Training batches as they are ordered, with a mark behind each span.

    Attributes:
        orders: Where orders come from; an empty one ends the run.
    """

    orders: Connection

    def items(self, stop: Callable[[], bool], start: int = 0) -> Iterator[Item]:
        """Everything that flows, in order."""
        step, per_epoch = start, self.steps_per_epoch
        while spans := self._order():
            for batches in spans:
                for _ in range(batches):
                    yield TrainBatch(step, *divmod(step, per_epoch), self.batch_size)
                    step += 1
                yield Evaluate("train", step, step // per_epoch)
        yield End(step)

    def _order(self) -> Sequence[int]:
        try:
            spans: Sequence[int] = self.orders.recv()
        except EOFError:
            raise SystemExit(1) from None  # nobody is left to give orders, or to be told so
        return spans


def paced(job: Job) -> tuple[Job, Connection]:
    """The job with a paced course, and where its orders are to be sent."""
    # Else a worker would report by itself, and not wait for a mark.
    assert job.course.steps_per_epoch % EPOCH == job.course.log_every % EPOCH == 0
    received, sent = Pipe(duplex=False)
    # By field: `vars` would hold cached properties too.
    course = {field.name: getattr(job.course, field.name) for field in fields(job.course)}
    return replace(job, course=PacedCourse(**course, orders=received)), sent


@dataclass
class Line:
    """Stages in a row that run on the same orders.

    Attributes:
        orders: What they are told to do.
        last: The last of them, whose reports are listened to.
        steps: How many have been ordered.
        step_s: Seconds of a step when it was last measured.
    """

    orders: Connection
    last: int
    steps: int = 0
    step_s: float = 0.0

    def order(self, spans: Sequence[int]) -> list[int]:
        """Order spans of batches; the number of steps that are done at the end of each."""
        lengths, ends = [], []
        for batches in spans:
            # After such a step a worker reports by itself, and not when the mark comes.
            length = batches + ((self.steps + batches) % EPOCH == 0)
            self.steps += length
            lengths.append(length)
            ends.append(self.steps)
        self.orders.send(lengths)
        return ends


class Workers:
    """A job's workers, started by the launcher in a thread.

    Args:
        name: Named in errors.
        job: The run; its course, or what its channels bring, is paced.
        transport: Makes the channels.
        lines: Which stages run on which orders.
    """

    def __init__(self, name: str, job: Job, transport: Transport, lines: Sequence[Line]) -> None:
        self.name, self.job, self.lines = name, job, lines
        self._events: SimpleQueue[Report | Ending | Exception] = SimpleQueue()
        self._marks: dict[tuple[int, int], tuple[float, float]] = {}
        self._others: set[BaseProcess] = set()
        self._thread = Thread(target=self._launch, args=(transport,), name=name, daemon=True)

    def start(self) -> None:
        """Start the workers, and wait until each is ready."""
        self._others = set(active_children())
        self._thread.start()
        for _ in range(self.job.stages):
            self._hear()

    def warm_up(self) -> float:
        """Train the first steps; the mean loss of the last `WARM_UP[1]` of them."""
        return self.time(self.lines, [WARM_UP] * len(self.lines))

    def measure(self, seconds: float) -> float:
        """Samples per second, of the slowest line where there are several."""
        orders = [self.spans(line, seconds) for line in self.lines]
        self.time(self.lines, orders)
        return self.job.course.batch_size / max(line.step_s for line in self.lines)

    def spans(self, line: Line, seconds: float) -> list[int]:
        """An order whose second span takes about so long, in a pipeline that is full throughout."""
        steps = max(LEAST_STEPS, round(seconds / line.step_s))
        fill = max(1, self.job.stages - 1)
        # What lies in the channels at the end of the span keeps only the later stages at work.
        tail = self.job.depth * (self.job.stages - 1) if self.job.local_learning else 0
        return [fill, steps, tail] if tail else [fill, steps]

    def time(self, lines: Sequence[Line], orders: Sequence[Sequence[int]]) -> float:
        """Have lines train, all at the same time, and time the second span of each.

        Returns:
            The mean loss of that span, on the last line.
        """
        ends = [line.order(spans) for line, spans in zip(lines, orders, strict=True)]
        waited = {(line.last, end) for line, each in zip(lines, ends, strict=True) for end in each}
        while not waited <= self._marks.keys():
            self._note(self._hear())
        loss = 0.0
        for line, (first, last, *_) in zip(lines, ends, strict=True):
            start, _ = self._marks[line.last, first]
            end, loss = self._marks[line.last, last]
            line.step_s = (end - start) / (last - first)
        return loss

    def finish(self) -> list[int | None]:
        """End the training; the peak memory of each worker, in bytes."""
        for line in self.lines:
            line.orders.send(())
        while not isinstance(event := self._hear(), Ending):
            pass
        return [report["peak_memory_bytes"] for report in event.reports]

    def stop(self) -> None:
        """Leave no process behind, whatever state they are in; those started later are gone."""
        for child in set(active_children()) - self._others:
            child.kill()  # the launcher notices, and reaps them all
        if self._thread.ident is not None:
            self._thread.join(LIMIT_S)
        for line in self.lines:
            line.orders.close()

    def _launch(self, transport: Transport) -> None:
        try:
            self._events.put(launch(self.job, transport, self._report))
        except Exception as error:  # of whatever kind, it is for the thread that waits
            self._events.put(error)

    def _report(self, report: Report) -> None:
        self._events.put({**report, "heard_s": perf_counter()})

    def _note(self, event: Report | Ending) -> None:
        """Keep when a stage reported what it had trained, and with which loss."""
        if isinstance(event, Ending) or event["kind"] != "metrics":
            return
        stage = event["stage"]
        # A stage reports each of its modules, in order.
        if event["module"] == self.job.layout.modules_of(stage)[-1]:
            mark = event["heard_s"], event["loss"] / event["samples"]
            self._marks[stage, event["step"]] = mark

    def _hear(self) -> Report | Ending:
        """The next event.

        Raises:
            RunFailedError: It is a failure, or none comes.
        """
        event: Report | Ending | Exception | None = None
        with suppress(Empty):
            event = self._events.get(timeout=LIMIT_S)
        if event is None:
            raise RunFailedError(f"{self.name}: nothing was heard for {LIMIT_S:.0f} s")
        if isinstance(event, Exception):
            raise RunFailedError(f"{self.name}: {event}") from event
        return event


def pipeline(name: str, job: Job, transport: Transport) -> Workers:
    """A job as it is, on orders to its first stage."""
    job, orders = paced(job)
    return Workers(name, job, transport, [Line(orders, job.stages - 1)])
