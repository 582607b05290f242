"""The times that a recorder counts for a stage. The test sets the clock."""

import pytest

from ppll_cli.observe.spans import Span
from ppll_cli.pipeline.instructions import Backward, Forward
from ppll_cli.worker import clock as clocks
from ppll_cli.worker.recorder import Recorder

FORWARD, BACKWARD = Forward(0, 0), Backward(0, 0)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(clocks, "perf_counter", clock)
    return clock


class Script:
    """A recorder, and a stage in which each batch has 8 samples and takes 10 s."""

    def __init__(self, clock: Clock, warmup: int = 0, skip: int = 0, traced: int = 0) -> None:
        self.clock = clock
        self.steady_at: list[float] = []
        self.step = 0
        self.recorder = Recorder(
            clocks.Clock(), warmup, skip, lambda: self.steady_at.append(clock.now_s), traced
        )

    def batches(self, count: int) -> None:
        for _ in range(count):
            self.recorder.begin_batch(self.step)
            self.step += 1
            with self.recorder.span("starved"):
                self.clock.now_s += 1
            with self.recorder.span("compute", FORWARD):
                self.clock.now_s += 2
            with self.recorder.span("compute", BACKWARD):
                self.clock.now_s += 3
            self.clock.now_s += 4  # time that belongs to no activity
            self.recorder.end_batch(8)

    def evaluation(self) -> None:
        self.recorder.end_segment()
        self.recorder.settle()
        with self.recorder.span("starved"):
            self.clock.now_s += 50
        with self.recorder.span("compute", FORWARD):
            self.clock.now_s += 50

    def counted(self) -> int:
        """Return the number of counted batches, and check that all totals are of these batches."""
        totals = self.recorder.totals
        assert totals.samples == 8 * totals.batches
        assert totals.wall_s == 10 * totals.batches
        assert totals.spent_s.get("starved", 0.0) == 1 * totals.batches
        assert totals.spent_s.get("compute", 0.0) == 5 * totals.batches
        assert totals.instruction_s.get(FORWARD, 0.0) == 2 * totals.batches
        assert totals.instruction_s.get(BACKWARD, 0.0) == 3 * totals.batches
        return totals.batches


@pytest.mark.parametrize(
    ("warmup", "skip", "segments", "counted"),
    [
        (0, 0, [5], 5),
        (2, 0, [5], 3),
        (5, 0, [5], 0),
        (9, 0, [5], 0),
        (0, 0, [3, 2], 5),
        (0, 2, [5], 5),  # no batch comes before it, so no wait can belong to it
        (0, 2, [3, 4], 3 + 2),
        (0, 2, [3, 2, 1, 3], 3 + 0 + 0 + 1),
        (0, 2, [1, 4], 1 + 2),
        (2, 1, [5, 3], 3 + 2),
        (4, 1, [3, 3, 3], 0 + 2 + 2),
        (4, 3, [3, 5, 5], 0 + 2 + 2),
    ],
)
def test_which_batches_are_counted(
    clock: Clock, warmup: int, skip: int, segments: list[int], counted: int
) -> None:
    script = Script(clock, warmup, skip)
    for batches in segments:
        script.batches(batches)
        script.evaluation()
    assert script.counted() == counted
    assert len(script.steady_at) == (1 if counted else 0)


def test_the_steady_state_begins_with_the_first_batch_that_counts(clock: Clock) -> None:
    script = Script(clock, warmup=2)
    script.batches(4)
    script.evaluation()
    script.batches(4)
    assert script.steady_at == [120.0]


def test_two_evaluations_in_a_row_are_one_gap(clock: Clock) -> None:
    script = Script(clock)
    script.batches(2)
    script.evaluation()
    script.evaluation()
    script.batches(2)
    script.evaluation()
    assert script.counted() == 4


def test_parts_and_the_whole_are_of_the_same_time(clock: Clock) -> None:
    """The total includes the wait between two batches, like the part `starved`."""
    script = Script(clock)
    script.batches(1)
    with script.recorder.span("starved"):
        clock.now_s += 20
    script.batches(1)
    script.recorder.end_segment()
    totals = script.recorder.totals
    assert (totals.wall_s, totals.spent_s["starved"]) == (40.0, 22.0)
    assert totals.spent_s["compute"] / totals.wall_s == 0.25


@pytest.mark.parametrize(
    ("warmup", "traced", "segments", "steps"),
    [
        (0, 0, [5], []),
        (0, 2, [5], [0, 1]),
        (3, 2, [9], [3, 4]),
        (3, 2, [5, 5], [3, 4]),
        (3, 2, [4, 5], [4, 5]),  # two consecutive batches are possible, so one is not enough
        (0, 4, [1, 3, 2], [1, 2, 3]),  # no more consecutive batches exist
        (9, 2, [5], []),
    ],
)
def test_which_batches_are_traced(
    clock: Clock, warmup: int, traced: int, segments: list[int], steps: list[int]
) -> None:
    script = Script(clock, warmup, traced=traced)
    for batches in segments:
        script.batches(batches)
        script.evaluation()
    trace = script.recorder.trace
    assert [span.step for span in trace if span.instruction == BACKWARD] == steps
    assert len(trace) == 3 * len(steps)


def test_a_trace_says_when_what_was_done(clock: Clock) -> None:
    script = Script(clock, warmup=1, traced=1)
    script.batches(3)
    script.recorder.settle()
    assert script.recorder.trace == [
        Span(110.0, 111.0, "starved", None, 1),
        Span(111.0, 113.0, "compute", FORWARD, 1),
        Span(113.0, 116.0, "compute", BACKWARD, 1),
    ]


def test_a_restarted_worker_continues_the_totals_in_the_middle_of_a_segment(clock: Clock) -> None:
    """The saved totals have the time of the counted batches, although the segment has not ended."""
    first = Script(clock, warmup=2)
    first.batches(5)
    saved = first.recorder.so_far()
    assert (saved.batches, saved.samples, saved.wall_s) == (3, 24, 30)
    assert saved.spent_s == {"starved": 3, "compute": 15}
    first.batches(1)
    assert (saved.batches, saved.wall_s) == (3, 30)
    second = Script(clock, warmup=2, traced=2)
    span = Span(0.0, 1.0, "compute", FORWARD, 0)
    second.recorder.continue_from(saved, [span])
    second.batches(4)
    second.evaluation()
    totals = second.recorder.totals
    assert (totals.batches, totals.samples, totals.wall_s) == (5, 40, 50)
    assert totals.spent_s == {"starved": 5, "compute": 25}
    assert second.recorder.trace == [span]
    assert len(second.steady_at) == 1


def test_a_restart_counts_as_no_time_at_all(clock: Clock) -> None:
    """Neither the gap between two processes counts, nor what the first one did after it saved."""
    first = Script(clock)
    first.batches(3)
    saved = first.recorder.so_far()
    first.batches(2)
    clock.now_s += 1000
    second = Script(clock)
    second.recorder.continue_from(saved, [])
    second.batches(4)
    second.evaluation()
    assert second.recorder.totals.samples == 8 * 7
    assert second.counted() == 7


def test_a_process_traces_anew_what_was_lost_with_the_one_before_it(clock: Clock) -> None:
    first = Script(clock, traced=3)
    first.batches(2)
    saved = first.recorder.so_far()
    assert not first.recorder.trace  # it is not complete
    clock.now_s += 1000
    began_s = clock.now_s
    second = Script(clock, traced=3)
    second.recorder.continue_from(saved, first.recorder.trace)
    second.batches(4)
    second.evaluation()
    assert min(span.start_s for span in second.recorder.trace) >= began_s
    assert {span.step for span in second.recorder.trace} == {0, 1, 2}


def test_a_snapshot_is_a_kind_of_its_own(clock: Clock) -> None:
    """It is neither work nor bubble, and the segment goes on in it."""
    script = Script(clock, traced=2)
    script.batches(1)
    with script.recorder.span("snapshot"):
        script.recorder.so_far()
        clock.now_s += 7
    script.batches(1)
    script.evaluation()
    totals = script.recorder.totals
    assert (totals.batches, totals.wall_s) == (2, 27)
    assert totals.spent_s == {"starved": 2, "compute": 10, "snapshot": 7}
    assert "snapshot" in {span.category for span in script.recorder.trace}


def test_what_is_saved_of_ended_segments_is_their_sum(clock: Clock) -> None:
    script = Script(clock)
    script.batches(3)
    script.evaluation()
    saved = script.recorder.so_far()
    assert (saved.batches, saved.wall_s) == (3, 30)
