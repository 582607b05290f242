"""Clocks that mark moments of a device's work and tell whether the device has reached them.

On CPU a call returns when its work is done. On CUDA a call returns when its work is queued, so a
moment is an event in the queue. Its time is known once the device has passed it; asking whether the
device has passed it does not block the host.
"""

from time import perf_counter
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """A device's clock. Moments are opaque to its users."""

    def mark(self) -> Any:
        """Return the moment at which the device has done all work that it has been given so far."""
        ...

    def passed(self, moment: Any) -> bool:
        """Return whether the device has reached a moment."""
        ...

    def wait(self, moment: Any) -> None:
        """Wait until the device has reached a moment."""
        ...

    def seconds(self, first: Any, last: Any) -> float:
        """Return the seconds between two moments, both of which the device has passed."""
        ...

    def free(self, moment: Any) -> None:
        """Take back a moment that nobody uses any more."""
        ...

    def host_s(self, moment: Any) -> float:
        """Return when a moment was, in seconds of `perf_counter`. Waits for the device."""
        ...


class HostClock:
    """The clock of a CPU. A moment is a time of `perf_counter`, in seconds."""

    def mark(self) -> float:
        """Return the present time."""
        return perf_counter()

    def passed(self, moment: float) -> bool:
        """Return True: work on a CPU is done when it is marked."""
        return True

    def wait(self, moment: float) -> None:
        """Return at once: the moment has passed."""

    def seconds(self, first: float, last: float) -> float:
        """Return the seconds between two moments."""
        return last - first

    def free(self, moment: float) -> None:
        """Do nothing."""

    def host_s(self, moment: float) -> float:
        """Return the moment itself."""
        return moment


class StreamClock:
    """The clock of a CUDA stream. Moments are events, which are reused once they are freed.

    Args:
        backend: The module that makes events: `torch.cuda`, or a fake of it in tests. Events are
            recorded on the current stream.
    """

    def __init__(self, backend: Any = torch.cuda) -> None:
        self._backend = backend
        self._free: list[Any] = []

    def mark(self) -> Any:
        """Record and return an event behind all queued work."""
        event = self._free.pop() if self._free else self._backend.Event(enable_timing=True)
        event.record()
        return event

    def passed(self, moment: Any) -> bool:
        """Return whether the device has reached the event."""
        return bool(moment.query())

    def wait(self, moment: Any) -> None:
        """Wait until the device has reached the event."""
        moment.synchronize()

    def seconds(self, first: Any, last: Any) -> float:
        """Return the seconds between two events that the device has reached."""
        return float(first.elapsed_time(last)) / 1000

    def free(self, moment: Any) -> None:
        """Keep the event, to be recorded anew for another moment."""
        self._free.append(moment)

    def host_s(self, moment: Any) -> float:
        """Return the event's time, by comparing both clocks after the device has done all work."""
        now = self.mark()
        self.wait(now)
        now_s = perf_counter()
        ago_s = self.seconds(moment, now)
        self.free(now)
        return now_s - ago_s


def clock_of(device: torch.device) -> Clock:
    """Return a new clock for a device."""
    return StreamClock() if device.type == "cuda" else HostClock()
