"""Timestamps of workers that stop advancing, and which worker is blamed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.job import pulse
from ppll_cli.job.pulse import ALIVE_LIMIT_S, STARTING_ALIVE_LIMIT_S, Pulse, Watchdog


class Time:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(pulse, "monotonic", lambda: self.now_s)

    def pass_by(
        self, seconds: float, watch: Watchdog, *living: Pulse, look_s: float = 1.0
    ) -> list[tuple[int, str]]:
        """Let time pass.

        Every `look_s` seconds, the living workers give a sign of life, then the parent checks.
        """
        late: list[tuple[int, str]] = []
        for _ in range(int(seconds / look_s)):
            self.now_s += look_s
            for each in living:
                each.beat()
            late += watch.late()
        return late


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def begun(limit_s: float | None = None, started: bool = True) -> Pulse:
    made = Pulse(started=started)
    made.beat()
    made.begin("Forward(0)", limit_s)
    return made


def test_a_stopped_process_is_found_after_its_limit(clock: Time) -> None:
    one, other = begun(), begun()
    watch = Watchdog([one, other])
    assert not clock.pass_by(ALIVE_LIMIT_S, watch, one, other)
    late = clock.pass_by(ALIVE_LIMIT_S + 1, watch, one)
    assert late == [(1, "the worker process is stopped: no sign of life for 7 s")]


@given(beat_s=st.floats(0, 1), looks_s=st.lists(st.floats(0.5, 3), min_size=20, max_size=20))
def test_a_stopped_process_is_found_within_ten_seconds(beat_s: float, looks_s: list[float]) -> None:
    """On a busy machine this once took 11 s, because the parent checked late."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Time(patch)
        one, other = begun(), begun()
        watch = Watchdog([one, other])
        clock.now_s += beat_s
        one.beat()
        stopped_s = clock.now_s  # soon after its last sign of life, which is the worst case
        for look_s in looks_s:
            late = clock.pass_by(look_s, watch, other, look_s=look_s)
            if late:
                break
        assert [worker for worker, _ in late] == [0]
        assert clock.now_s - stopped_s < 10


def test_a_starting_process_may_be_silent_for_a_minute(clock: Time) -> None:
    """While CUDA starts on a device, or on a neighbour's device, Python's lock can be held."""
    one, other = begun(started=False), begun(started=False)
    watch = Watchdog([one, other])
    assert not clock.pass_by(STARTING_ALIVE_LIMIT_S, watch)
    other.started = True
    other.beat()
    late = clock.pass_by(1, watch, other)
    assert late == [(0, "the worker process is stopped: no sign of life for 61 s")]
    late = clock.pass_by(ALIVE_LIMIT_S + 1, Watchdog([other]))
    assert late == [(0, "the worker process is stopped: no sign of life for 7 s")]


def test_a_process_without_a_first_sign_of_life_is_not_stopped(clock: Time) -> None:
    """The fork server may still be importing modules."""
    assert not clock.pass_by(100, Watchdog([Pulse()]))


def test_a_parent_that_was_stopped_reports_no_worker_as_stopped(clock: Time) -> None:
    """Ctrl-Z stops all processes of a run. After `fg` all timestamps are old."""
    one = begun(limit_s=60)
    watch = Watchdog([one])
    clock.pass_by(5, watch, one)
    clock.now_s += 3600
    assert not list(watch.late())
    assert not clock.pass_by(30, watch, one)
    assert [stage for stage, _ in clock.pass_by(8, watch)] == [0, 0]


def test_a_sign_of_life_just_before_a_stop_of_all_changes_nothing(clock: Time) -> None:
    """At its next check, an hour later, the parent sees this sign of life for the first time."""
    one = begun(limit_s=60)
    watch = Watchdog([one])
    clock.pass_by(5, watch, one)
    clock.now_s += 0.3
    one.beat()
    one.renew_progress()
    clock.now_s += 3600
    assert not list(watch.late())


def test_a_worker_that_stops_after_its_parent_was_stopped_is_found(clock: Time) -> None:
    """Only the parent was stopped. This time does not count against the worker."""
    one = begun()
    watch = Watchdog([one])
    clock.now_s += 3600
    one.beat()
    assert not list(watch.late())
    assert not clock.pass_by(ALIVE_LIMIT_S, watch)
    assert [stage for stage, _ in clock.pass_by(1, watch)] == [0]


def test_a_worker_that_computes_too_long_is_late(clock: Time) -> None:
    stuck, waiting, endless = begun(limit_s=20), begun(limit_s=20), begun(limit_s=None)
    watch = Watchdog([stuck, waiting, endless])
    late = []
    for _ in range(21):
        waiting.renew_progress()
        late += clock.pass_by(1, watch, stuck, waiting, endless)
    assert late == [(0, "no progress for 21 s; the limit is 20 s")]


class Changing(Pulse):
    """A pulse whose worker begins another activity just before or after a certain read."""

    reads = 0
    at, after = 0, False
    next_limit_s: float | None = None

    def __getattribute__(self, name: str) -> Any:
        if name not in ("limit_s", "progress_s"):
            return super().__getattribute__(name)
        self.reads += 1
        begins = self.reads == self.at
        if begins and not self.after:
            self.begin("another activity", self.next_limit_s)
        value = super().__getattribute__(name)
        if begins and self.after:
            self.begin("another activity", self.next_limit_s)
        return value


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize(("limits_s", "passed_s"), [((10.0, None), 5.0), ((None, 2.0), 100.0)])
def test_a_worker_that_begins_a_new_activity_is_not_late(
    clock: Time, limits_s: tuple[Any, Any], passed_s: float, at: int, after: bool
) -> None:
    changing = Changing(started=True)
    changing.begin("an activity", limits_s[0])
    watch = Watchdog([changing])
    clock.now_s += passed_s
    changing.beat()
    changing.reads, changing.at, changing.after = 0, at, after
    changing.next_limit_s = limits_s[1]
    assert not list(watch.late())


def test_a_long_description_of_an_activity_is_shortened() -> None:
    made = Pulse()
    assert str(made) == "starting"
    made.begin("Forward" + "(0)" * 100, None)
    made.take("batch 3")
    assert str(made).startswith("Forward(0)(0)")
    assert str(made).endswith(" of batch 3")


def test_the_memory_of_a_pulse_shows_the_worker_on_another_machine() -> None:
    made, shown = Pulse(), Pulse()
    made.begin("Forward", None)
    made.take("batch 3")
    made.step = 7
    made.spend(2.0, {"compute": 1.5})
    memory = bytes(made)
    shown.show(memory)
    assert (str(shown), shown.look()) == (str(made), made.look())
    made.step = 8
    assert shown.look().step == 7
    with pytest.raises(ValueError, match="size"):
        shown.show(memory[:-1])
