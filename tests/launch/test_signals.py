"""Signals that reach the launcher while it watches workers, and while it cleans up."""

import signal
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from ppll_cli.errors import Interrupted
from ppll_cli.launch.launcher import _stop_on_signal

NUMBER = signal.SIGTERM


def test_the_second_signal_raises_and_later_ones_cannot_skip_the_clean_up() -> None:
    """An exception between two callbacks of the stack once skipped all the others."""
    stop, done = SimpleNamespace(value=0), list[str]()

    def interrupted() -> None:
        with _stop_on_signal(stop) as signals, ExitStack() as held, signals.before_clean_up():
            held.callback(done.append, "last")
            held.callback(signal.raise_signal, NUMBER)
            held.callback(done.append, "first")
            signal.raise_signal(NUMBER)
            assert stop.value == NUMBER
            signal.raise_signal(NUMBER)

    with pytest.raises(Interrupted):
        interrupted()
    assert done == ["first", "last"]


def test_a_signal_during_the_clean_up_after_a_run_raises_after_it() -> None:
    """In a sweep, the signal was lost, and the next job began."""
    stop, done = SimpleNamespace(value=0), list[str]()
    before = signal.getsignal(NUMBER)

    def interrupted() -> None:
        with _stop_on_signal(stop) as signals, ExitStack() as held:
            held.callback(done.append, "last")
            held.callback(signal.raise_signal, NUMBER)
            with signals.before_clean_up():
                pass

    with pytest.raises(Interrupted):
        interrupted()
    assert done == ["last"]
    assert signal.getsignal(NUMBER) is before
    assert not stop.value  # nothing says that the run will stop after the current batch


def test_an_error_of_the_run_is_kept_if_a_signal_comes_during_the_clean_up() -> None:
    def failed() -> None:
        with _stop_on_signal(SimpleNamespace(value=0)) as signals, ExitStack() as held:
            held.callback(signal.raise_signal, NUMBER)
            with signals.before_clean_up():
                raise ValueError("a worker failed")

    with pytest.raises(ValueError, match="a worker failed"):
        failed()
