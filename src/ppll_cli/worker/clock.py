"""Clocks that record moments in a device's work, and report whether the device has reached them.

On CPU a call returns when its work is done, so a moment is a time. On CUDA a call returns when its
work is queued, so a moment is a CUDA event in the queue. The time of an event is known when the
device has reached the event.
"""

from time import perf_counter
from typing import Any

import torch


class Clock:
    """The clock of a CPU, and the base class of other clocks.

    Methods accept only moments that `mark` of the same clock has returned. On CPU a moment is a
    value of `perf_counter`, in seconds.
    """

    def mark(self) -> Any:
        """Return the moment after all work that is queued so far, without waiting for it."""
        return perf_counter()

    def passed(self, moment: Any) -> bool:
        """Return whether the device has reached a moment."""
        return True

    def wait(self, moment: Any) -> None:
        """Wait until the device has reached a moment."""

    def seconds(self, first: Any, last: Any) -> float:
        """Return the seconds between two moments, which the device must have reached."""
        elapsed_s: float = last - first
        return elapsed_s

    def free(self, moment: Any) -> None:
        """Allow the clock to reuse a moment, which the caller must not use again."""

    def host_s(self, moment: Any) -> float:
        """Convert a moment to `perf_counter` seconds. This may wait for all queued work."""
        now_s: float = moment
        return now_s


class StreamClock(Clock):
    """The clock of the current CUDA stream. A moment is a CUDA event.

    `backend` is `torch.cuda`, or a fake of it in tests.
    """

    def __init__(self, backend: Any = torch.cuda) -> None:
        self._backend = backend
        self._free: list[Any] = []

    def mark(self) -> Any:  # noqa: D102
        event = self._free.pop() if self._free else self._backend.Event(enable_timing=True)
        event.record()
        return event

    def passed(self, moment: Any) -> bool:  # noqa: D102
        return bool(moment.query())

    def wait(self, moment: Any) -> None:  # noqa: D102
        moment.synchronize()

    def seconds(self, first: Any, last: Any) -> float:  # noqa: D102
        return float(first.elapsed_time(last)) / 1000

    def free(self, moment: Any) -> None:  # noqa: D102
        self._free.append(moment)

    def host_s(self, moment: Any) -> float:  # noqa: D102
        now = self.mark()
        self.wait(now)
        now_s = perf_counter()
        ago_s = self.seconds(moment, now)
        self.free(now)
        return now_s - ago_s


def clock_of(device: torch.device) -> Clock:
    """Return a new clock for a device."""
    return StreamClock() if device.type == "cuda" else Clock()
