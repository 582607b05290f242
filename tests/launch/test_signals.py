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
        with _stop_on_signal(stop) as signals, ExitStack() as held, signals.raising():
            held.callback(done.append, "last")
            held.callback(signal.raise_signal, NUMBER)
            held.callback(done.append, "first")
            signal.raise_signal(NUMBER)
            assert stop.value == NUMBER
            signal.raise_signal(NUMBER)

    with pytest.raises(Interrupted):
        interrupted()
    assert done == ["first", "last"]


def test_signals_during_the_clean_up_after_a_run_do_nothing() -> None:
    stop, done = SimpleNamespace(value=NUMBER), list[str]()
    before = signal.getsignal(NUMBER)
    with _stop_on_signal(stop) as signals, ExitStack() as held:
        held.callback(done.append, "last")
        held.callback(signal.raise_signal, NUMBER)
        with signals.raising():
            pass
    assert done == ["last"]
    assert signal.getsignal(NUMBER) is before
