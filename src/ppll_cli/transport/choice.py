"""Which transport a run uses."""

import logging
from collections.abc import Sequence

from ppll_cli.errors import ConfigError
from ppll_cli.transport.channel import Transport
from ppll_cli.transport.naive import NaiveTransport

log = logging.getLogger(__name__)


def usable(name: str, transport: Transport, size: int, devices: Sequence[str]) -> Transport:
    """The transport that was asked for, or the plain one where something stands in its way.

    Args:
        name: What was asked for; the reason why it is not used is logged.
        transport: The same.
        size: Bytes of all slots of all channels.
        devices: Of all stages.

    Raises:
        ConfigError: The plain one cannot be used here either.
    """
    obstacle = transport.obstacle(size, devices)
    if obstacle is None:
        return transport
    plain = NaiveTransport(depth=transport.depth, wire_dtype=transport.wire_dtype)
    other = plain.obstacle(size, devices)
    if other is None:
        log.warning("transport=%s: %s; naive is used", name, obstacle)
        return plain
    if other == obstacle:
        raise ConfigError("transport", name, other, "use transport=ring, or unset the variable")
    raise ConfigError(
        "transport",
        name,
        f"{obstacle}; nor can naive be used: {other}",
        "make room there, or unset the variable",
    )
