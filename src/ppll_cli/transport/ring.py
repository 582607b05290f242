"""The fast transport: rings of slots that are allocated once; see `ring_ends` for the messages.

The devices of the two workers decide where the slots are (`memory`), and how one end of a channel
waits until the other end has finished with a slot (`order`):

- If a worker is on CPU, slots are in shared host memory. An end waits for tokens, which are short
  messages in a pipe.
- Between CUDA workers, slots are on the receiver's device. An end also waits for CUDA events.
- If the sender cannot access this device's memory, slots are in pinned host memory, and the
  receiver copies the tensors to its device.
- If processes cannot share CUDA events, slots are in pinned host memory too, and each worker waits
  for its device before it sends a token.
"""

import logging
from collections.abc import Sequence
from itertools import combinations

from ppll_cli.transport.channel import ALIGNMENT, Receiver, Sender, WireDtype, aligned
from ppll_cli.transport.devices import cannot_reach, cannot_share, no_ipc
from ppll_cli.transport.memory import DeviceMemory, HostMemory, Memory, no_room, shared_zeros
from ppll_cli.transport.order import CudaOrder, HostOrder, Order
from ppll_cli.transport.pipes import open_pipes
from ppll_cli.transport.ring_ends import RingReceiver, RingSender
from ppll_cli.transport.slots import Slots

log = logging.getLogger(__name__)


class RingTransport:
    """Channels whose slots are allocated once and used for every message.

    `ipc` says whether CUDA workers may share memory and events of their devices (CUDA IPC). It must
    be False in a container that forbids this.
    """

    def __init__(
        self, *, depth: int, wire_dtype: WireDtype | None = None, ipc: bool = True
    ) -> None:
        self.depth, self.wire_dtype, self.ipc = depth, wire_dtype, ipc
        self._told: set[str] = set()

    def obstacle(self, size: int, devices: Sequence[str]) -> str | None:
        """Return why channels of `size` bytes cannot be created; None if they can be."""
        pairs = combinations(dict.fromkeys(devices), 2)
        if "cpu" in devices or self._cannot_share(*devices):
            return no_room(size)
        return no_room(size) if any(cannot_reach(*pair) for pair in pairs) else None

    def _cannot_share(self, *devices: str) -> str | None:
        return cannot_share(*devices) if self.ipc else "transport.ipc=false"

    def descriptors(self, slots: int, tensors: int) -> int:
        """Return the number of file descriptors of an end: 1 for the memory, 1 for each pipe."""
        return 3

    def channel(
        self, slots: int, size: int, source: str = "cpu", target: str = "cpu"
    ) -> tuple[Sender, Receiver]:
        """Create a new channel, and return its two ends."""
        size = max(ALIGNMENT, aligned(size))
        if "cpu" in (source, target):
            host = _on_host(slots * size, pinned=False)
            return ring(slots, size, host, (Order(), Order()))
        obstacle = self._cannot_share(source, target) or cannot_reach(source, target)
        orders: tuple[Order, Order]
        if not self.ipc or no_ipc(source, target):
            orders = HostOrder(source), HostOrder(target)
        else:
            aside = obstacle is not None or source != target
            orders = CudaOrder(source, target, aside), CudaOrder(target, source, aside)
        if obstacle is not None:
            self._tell(f"{obstacle}; using pinned host memory instead")
            return ring(slots, size, _on_host(slots * size, pinned=True), orders, target)
        there = DeviceMemory(slots * size, target), DeviceMemory(slots * size, target)
        return ring(slots, size, there, orders)

    def _tell(self, line: str) -> None:
        if line not in self._told:
            log.warning("transport=ring: %s", line)
        self._told.add(line)


def ring(
    slots: int,
    size: int,
    memories: tuple[Memory, Memory],
    orders: tuple[Order, Order],
    device: str | None = None,
) -> tuple[RingSender, RingReceiver]:
    """Create a new ring of `slots` slots of `size` bytes, and return its two ends.

    Args:
        slots: Number of slots.
        size: Bytes of a slot.
        memories: The memory of all slots, as the sender and as the receiver access it.
        orders: Make the sender, and the receiver, wait until the other has finished with a slot.
        device: Device to which the receiver copies tensors. If None, they stay in the slot.
    """
    producer, consumer = open_pipes()
    theirs, ours = (Slots(memory, slots, size) for memory in memories)
    return (
        RingSender(producer, theirs, orders[0]),
        RingReceiver(consumer, ours, orders[1], device),
    )


def _on_host(size: int, pinned: bool) -> tuple[HostMemory, HostMemory]:
    tensor = shared_zeros(size)
    return HostMemory(tensor, pinned), HostMemory(tensor, pinned)
