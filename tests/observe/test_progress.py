"""Progress of a run, computed from states of workers at times that the test chooses."""

import pytest

from ppll_cli.observe.progress import KINDS, WINDOW_S, Look, Progress


def look(
    step: int, sent: int = 0, received: int = 0, counted_s: float = 0.0, **spent_s: float
) -> Look:
    spent = {kind: spent_s.get(kind, 0.0) for kind in KINDS}
    return Look(step, sent, received, 1000, counted_s, spent)


def test_nothing_is_known_before_the_first_step() -> None:
    now = Progress(0, 100).update(5.0, [look(0), look(0)])
    assert (now.step, now.steps_per_second, now.left_s) == (0, None, None)
    assert [stage.shares for stage in now.stages] == [None, None]


def test_the_remaining_time_follows_the_measured_speed() -> None:
    """The first step does not count, because it may include compilation."""
    progress = Progress(0, 100)
    progress.update(0.0, [look(0)])
    progress.update(60.0, [look(1)])
    now = progress.update(70.0, [look(21)])
    assert now.left_s == pytest.approx(79 * 10 / 20)


def test_progress_is_that_of_the_last_stage() -> None:
    progress = Progress(0, 100)
    progress.update(0.0, [look(9), look(4)])
    now = progress.update(2.0, [look(13), look(8)])
    assert (now.step, now.steps_per_second) == (8, 2.0)


def test_a_resumed_run_starts_at_its_checkpoints_step() -> None:
    progress = Progress(50, 100)
    assert progress.update(0.0, [look(0)]).step == 50
    progress.update(1.0, [look(51)])
    now = progress.update(2.0, [look(52)])
    assert (now.steps_per_second, now.left_s) == (1.0, 48.0)


def test_the_speed_is_that_of_recent_steps() -> None:
    progress = Progress(0, 1000)
    for second in range(int(WINDOW_S) + 1):
        progress.update(float(second), [look(10 * second)])
    last = 10 * int(WINDOW_S)
    for second in range(1, int(WINDOW_S) + 1):
        now = progress.update(WINDOW_S + second, [look(last + second)])
    assert now.steps_per_second == 1.0


def test_shares_are_those_of_recent_counted_time() -> None:
    progress = Progress(0, 100)
    assert progress.update(0.0, [look(1)]).stages[0].shares is None
    progress.update(1.0, [look(2, counted_s=2.0, compute=1.0, starved=0.5)])
    now = progress.update(1.0 + WINDOW_S, [look(3, counted_s=6.0, compute=2.0, starved=3.5)])
    shares = now.stages[0].shares
    assert shares is not None
    assert (shares["compute"], shares["starved"], shares["blocked"]) == (0.25, 0.75, 0.0)
    for second in range(2, 40):  # during an evaluation nothing is counted
        now = progress.update(second + WINDOW_S, [look(3, counted_s=6.0, compute=2.0, starved=3.5)])
    assert now.stages[0].shares == shares


def test_shares_never_exceed_the_whole() -> None:
    """A worker's times are read after its total, so they may be newer."""
    progress = Progress(0, 100)
    progress.update(0.0, [look(1)])
    now = progress.update(1.0, [look(2, counted_s=1.0, compute=1.5, starved=0.5)])
    shares = now.stages[0].shares
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1.0)


def test_queued_batches_were_sent_but_not_received() -> None:
    looks = [look(5, sent=7), look(4, sent=4, received=5), look(4, received=4)]
    now = Progress(0, 100).update(0.0, looks)
    assert [stage.queued for stage in now.stages] == [0, 2, 0]


def test_a_worker_that_restarts_is_marked() -> None:
    """It starts to count its time again from its snapshot, so its last fractions stay."""
    progress = Progress(0, 100)
    before, after = (look(n, counted_s=2.0 * n, compute=1.0 * n) for n in (1, 2))
    progress.update(0.0, [look(1), before])
    now = progress.update(1.0, [look(2), after._replace(restarts=True)])
    assert [stage.restarts for stage in now.stages] == [False, True]
    again = progress.update(2.0, [look(3), look(2, counted_s=1.5, compute=0.1)])
    assert not again.stages[1].restarts
    assert again.stages[1].shares == now.stages[1].shares
