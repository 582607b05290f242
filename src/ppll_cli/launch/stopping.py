"""Stop the workers on a signal or at a given time."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ppll_cli.errors import Interrupted
from ppll_cli.job.links import StopFlag
from ppll_cli.leaves import forkserver

log = logging.getLogger(__name__)


def stop_in_time(stop: StopFlag, until_s: float | None) -> None:
    """Stop the workers, as the first SIGTERM does, if the time limit has been reached.

    The limit is on the clock of `time.monotonic`; None for no limit.
    """
    if until_s is not None and time.monotonic() >= until_s and not stop.value:
        stop.value = signal.SIGTERM
        log.warning("max_minutes have passed: stopping after the current batch")


@contextmanager
def stop_on_signal(stop: StopFlag) -> Iterator[None]:
    """At the first signal, stop the workers after a checkpoint; at the second, raise `Interrupted`.

    Python handles signals only in the main thread; in another thread this function does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        if stop.value:
            raise Interrupted(number)
        stop.value = number
        log.warning(
            "stopping after the current batch; send the signal (Ctrl-C) again to stop at once"
        )

    previous = {number: signal.signal(number, handle) for number in forkserver.heeded()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
