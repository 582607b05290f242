"""Clocks that stand still, and whose fault it is."""

import pytest

from ppll_cli.runtime import pulse
from ppll_cli.runtime.pulse import ALIVE_LIMIT_S, Pulse, Watch


class Time:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(pulse, "monotonic", lambda: self.now_s)

    def pass_by(self, seconds: float, watch: Watch, *living: Pulse) -> list[tuple[int, str]]:
        """Second after second, as the parent looks; the living ones beat."""
        late: list[tuple[int, str]] = []
        for _ in range(int(seconds)):
            self.now_s += 1
            for each in living:
                each.beat()
            late += watch.late()
        return late


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def begun(limit_s: float | None = None) -> Pulse:
    made = Pulse()
    made.beat()
    made.begin("Forward(0)", limit_s)
    return made


def test_a_stopped_process_is_found_within_ten_seconds(clock: Time) -> None:
    one, other = begun(), begun()
    watch = Watch([one, other])
    assert not clock.pass_by(ALIVE_LIMIT_S, watch, one, other)
    late = clock.pass_by(9, watch, one)
    assert late == [(1, "the worker process is stopped: no sign of life for 9 s")]


def test_a_process_that_has_not_begun_to_live_is_not_stopped(clock: Time) -> None:
    """The fork server may still import what workers need."""
    assert not clock.pass_by(100, Watch([Pulse()]))


def test_a_parent_that_was_stopped_itself_declares_nobody_dead(clock: Time) -> None:
    """Ctrl-Z stops all of a run; after `fg` the clocks have stood still for as long as it did."""
    one = begun(limit_s=60)
    watch = Watch([one])
    clock.pass_by(5, watch, one)
    clock.now_s += 3600
    assert not list(watch.late())
    assert not clock.pass_by(30, watch, one)
    assert [stage for stage, _ in clock.pass_by(10, watch)] == [0, 0]


def test_whoever_computes_for_too_long_is_late_and_whoever_waits_is_not(clock: Time) -> None:
    stuck, waiting, endless = begun(limit_s=20), begun(limit_s=20), begun(limit_s=None)
    watch = Watch([stuck, waiting, endless])
    late = []
    for _ in range(21):
        waiting.get_on()
        late += clock.pass_by(1, watch, stuck, waiting, endless)
    assert late == [(0, "no progress for 21 s; the limit is 20 s")]


def test_what_a_worker_does_is_told_as_far_as_there_is_room() -> None:
    made = Pulse()
    assert str(made) == "starting"
    made.begin("Forward" + "(0)" * 100, None)
    made.take("batch 3")
    assert str(made).startswith("Forward(0)(0)")
    assert str(made).endswith(" of batch 3")
