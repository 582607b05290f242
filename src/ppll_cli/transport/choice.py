"""Chooses the transport that a run uses."""

import logging
from collections.abc import Sequence

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.scratch import SHARED_MEMORY
from ppll_cli.transport.channel import Transport
from ppll_cli.transport.memory import more_room
from ppll_cli.transport.queue import QueueTransport

log = logging.getLogger(__name__)


def usable(name: str, transport: Transport, size: int, devices: Sequence[str]) -> Transport:
    """Return `transport` if it can work on this machine; if not, log why and return another.

    The other transport is a `QueueTransport`.

    Args:
        name: The user's option for `transport`, for messages.
        transport: The transport that the user chose.
        size: Total size of all slots of all channels, in bytes.
        devices: The device of each worker on this machine.

    Raises:
        ConfigError: Neither `transport` nor a `QueueTransport` can work on this machine.
    """
    obstacle = transport.obstacle(size, devices)
    if obstacle is None:
        return transport
    ipc = getattr(transport, "ipc", True)
    queues = QueueTransport(depth=transport.depth, wire_dtype=transport.wire_dtype, ipc=ipc)
    other = queues.obstacle(size, devices)
    if other is None:
        log.warning("transport=%s: %s; using queue instead", name, obstacle)
        return queues
    if "cpu" in devices:  # on CPU, queues need shared memory just as other transports do
        raise ConfigError("transport", name, other, more_room(size))
    if other == obstacle:
        raise ConfigError("transport", name, other, "use transport=ring, or change this setting")
    raise ConfigError(
        "transport",
        name,
        f"{obstacle}; queue cannot be used either: {other}",
        f"make room in {SHARED_MEMORY}, or change this setting",
    )
