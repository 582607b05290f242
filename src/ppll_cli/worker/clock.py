"""The time at which a device does something, and whether it has done it yet.

On CPU a call returns when its work is done. On CUDA it returns when its work is queued, so a moment
there is an event in the queue: its time is known when the device has passed it, and to ask whether
it has does not stop the host.
"""

from time import perf_counter
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """A device's clock. What a moment is, only the clock itself knows."""

    def mark(self) -> Any:
        """The moment when the device has done all that it was given so far."""
        ...

    def passed(self, moment: Any) -> bool:
        """Whether the device has reached a moment."""
        ...

    def wait(self, moment: Any) -> None:
        """Wait until the device has reached a moment."""
        ...

    def seconds(self, first: Any, last: Any) -> float:
        """The time between two moments that have passed."""
        ...

    def free(self, moment: Any) -> None:
        """Take a moment back that nobody will ask about any more."""
        ...

    def host_s(self, moment: Any) -> float:
        """When a moment was on the clock of the host, `perf_counter`; this waits for the device."""
        ...


class HostClock:
    """The clock of a CPU: moments are the host's own seconds."""

    def mark(self) -> float:
        """Now."""
        return perf_counter()

    def passed(self, moment: float) -> bool:
        """It has."""
        return True

    def wait(self, moment: float) -> None:
        """It has passed."""

    def seconds(self, first: float, last: float) -> float:
        """The time between two moments."""
        return last - first

    def free(self, moment: float) -> None:
        """Nothing is to be taken back."""

    def host_s(self, moment: float) -> float:
        """The same clock."""
        return moment


class StreamClock:
    """The clock of a CUDA stream: moments are events, which are recorded again once they are free.

    Args:
        backend: What makes events, `torch.cuda` where a test gives nothing else. They are recorded
            on the stream that is current.
    """

    def __init__(self, backend: Any = torch.cuda) -> None:
        self._backend = backend
        self._free: list[Any] = []

    def mark(self) -> Any:
        """An event behind all that is queued."""
        event = self._free.pop() if self._free else self._backend.Event(enable_timing=True)
        event.record()
        return event

    def passed(self, moment: Any) -> bool:
        """Whether the event has been reached."""
        return bool(moment.query())

    def wait(self, moment: Any) -> None:
        """Wait for the event."""
        moment.synchronize()

    def seconds(self, first: Any, last: Any) -> float:
        """The time between two events that have been reached."""
        return float(first.elapsed_time(last)) / 1000

    def free(self, moment: Any) -> None:
        """Record the event anew for another moment."""
        self._free.append(moment)

    def host_s(self, moment: Any) -> float:
        """Compare the clocks now, when the device has done everything."""
        now = self.mark()
        self.wait(now)
        now_s = perf_counter()
        ago_s = self.seconds(moment, now)
        self.free(now)
        return now_s - ago_s


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return StreamClock() if device.type == "cuda" else HostClock()
