"""Runs the real workers of a job. They train when they get an order, and are idle otherwise.

An order is a list of spans: each span is a number of training batches. After each span a mark
follows the batches through the pipeline, and makes each stage report. The pipeline is not drained
for a mark. So the time between two reports of the last stage is the time that the running pipeline
needs for the batches between the two marks.
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
from ppll_cli.launch.launcher import Ending, launch
from ppll_cli.launch.machines.others import Report
from ppll_cli.pipeline.instructions import End, Evaluate
from ppll_cli.transport.channel import Transport
from scripts.benchmarks.runs import RunFailedError

LIMIT_S = 60.0

EPOCH = 50
"""Workers report after every epoch and every `log_every` steps; jobs have multiples of `EPOCH` for
both numbers. So between such steps, workers report only at marks."""

WARM_UP = (3, 3)
"""Numbers of batches in two spans before the measurements. Memory is allocated during the first
span. The time of a step is estimated from the second span."""

LEAST_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class PacedCourse(Course):
    """The items of a run (batches and marks), made as ordered. An empty order ends the run."""

    orders: Connection

    def items(self, stop: Callable[[], bool], start: int = 0) -> Iterator[Item]:
        """Yield the batches of all orders, a mark after each span, and then the end."""
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
            raise SystemExit(1) from None  # the process that gives orders has ended
        return spans


def paced(job: Job) -> tuple[Job, Connection]:
    """Return the job with a paced course, and the connection to which its orders are sent."""
    assert job.course.steps_per_epoch % EPOCH == job.course.log_every % EPOCH == 0
    received, sent = Pipe(duplex=False)
    # Fields are copied one by one, because `vars` would include cached properties.
    course = {field.name: getattr(job.course, field.name) for field in fields(job.course)}
    return replace(job, course=PacedCourse(**course, orders=received)), sent


@dataclass
class Line:
    """Successive stages that follow the same orders.

    Attributes:
        orders: The connection to which orders are sent.
        last: Number of the last stage. Its reports are timed.
        steps: Number of steps ordered so far.
        step_s: Seconds per step in the latest measurement.
    """

    orders: Connection
    last: int
    steps: int = 0
    step_s: float = 0.0

    def order(self, spans: Sequence[int]) -> list[int]:
        """Order spans of batches; return the number of steps done at the end of each span."""
        lengths, ends = [], []
        for batches in spans:
            # A worker reports every EPOCH steps, too. At the end of a span, this report would be
            # taken for that of the mark, so such a span gets one more batch.
            length = batches + ((self.steps + batches) % EPOCH == 0)
            self.steps += length
            lengths.append(length)
            ends.append(self.steps)
        self.orders.send(lengths)
        return ends


class Workers:
    """The workers of a job. A thread calls the launcher, which starts them.

    All methods that wait for workers raise a RunFailedError if the run fails, or if no report
    arrives within `LIMIT_S` seconds.

    Args:
        name: The name of the contender in errors.
        job: The job, whose course is a `PacedCourse`.
        lines: Groups of stages; all stages of a group follow the same orders.
    """

    def __init__(self, name: str, job: Job, transport: Transport, lines: Sequence[Line]) -> None:
        self.name, self.job, self.lines = name, job, lines
        self._events: SimpleQueue[Report | Ending | Exception] = SimpleQueue()
        self._marks: dict[tuple[int, int], tuple[float, float]] = {}
        self._others: set[BaseProcess] = set()
        self._thread = Thread(target=self._launch, args=(transport,), name=name, daemon=True)

    def start(self) -> None:
        """Start the workers, and wait until all are ready."""
        self._others = set(active_children())
        self._thread.start()
        for _ in range(self.job.stages):
            self._hear()

    def warm_up(self) -> float:
        """Train the first steps, and return the mean loss of the last `WARM_UP[1]` steps."""
        return self.time(self.lines, [WARM_UP] * len(self.lines))

    def measure(self, seconds: float) -> float:
        """Train for about `seconds`; return the samples per second of the slowest line."""
        orders = [self.spans(line, seconds) for line in self.lines]
        self.time(self.lines, orders)
        return self.job.course.batch_size / max(line.step_s for line in self.lines)

    def spans(self, line: Line, seconds: float) -> list[int]:
        """Return an order whose second span takes about `seconds` and keeps the pipeline full."""
        steps = max(LEAST_STEPS, round(seconds / line.step_s))
        fill = max(1, self.job.stages - 1)
        # Without a third span, the first stages would be idle at the end of the second.
        tail = self.job.depth * (self.job.stages - 1) if self.job.local_learning else 0
        return [fill, steps, tail] if tail else [fill, steps]

    def time(self, lines: Sequence[Line], orders: Sequence[Sequence[int]]) -> float:
        """Send orders to lines at the same time, and measure the second span of each order.

        Return the mean loss of the second span on the last line.
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
        """End the training, and return the peak memory of each worker, in bytes."""
        for line in self.lines:
            line.orders.send(())
        while not isinstance(event := self._hear(), Ending):
            pass
        return [report["worker"]["peak_memory_bytes"] for report in event.reports]

    def stop(self) -> None:
        """Kill all child processes that did not exist before `start`."""
        for child in set(active_children()) - self._others:
            child.kill()  # the launcher notices this and collects their statuses
        if self._thread.ident is not None:
            self._thread.join(LIMIT_S)
        for line in self.lines:
            line.orders.close()

    def _launch(self, transport: Transport) -> None:
        try:
            self._events.put(launch(self.job, transport, self._report))
        except Exception as error:  # `_hear` raises it in the waiting thread
            self._events.put(error)

    def _report(self, report: Report) -> None:
        self._events.put({**report, "heard_s": perf_counter()})

    def _note(self, event: Report | Ending) -> None:
        if isinstance(event, Ending) or event["kind"] != "metrics":
            return
        stage = event["stage"]
        # A stage sends a report for each of its modules, in order; only the last is used.
        if event["module"] == self.job.layout.modules_of(stage)[-1]:
            mark = event["heard_s"], event["loss"] / event["samples"]
            self._marks[stage, event["step"]] = mark

    def _hear(self) -> Report | Ending:
        # Return the next event; raise RunFailedError if it is a failure or does not arrive.
        event: Report | Ending | Exception | None = None
        with suppress(Empty):
            event = self._events.get(timeout=LIMIT_S)
        if event is None:
            raise RunFailedError(f"{self.name}: no report for {LIMIT_S:.0f} s")
        if isinstance(event, Exception):
            raise RunFailedError(f"{self.name}: {event}") from event
        return event


def pipeline(name: str, job: Job, transport: Transport) -> Workers:
    """Return the workers of a complete pipeline, whose first stage receives the orders."""
    job, orders = paced(job)
    return Workers(name, job, transport, [Line(orders, job.stages - 1)])
