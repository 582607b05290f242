"""Addresses and network interfaces of this machine. Imports nothing heavy."""

import fcntl
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address

BACKLOG = 2048
"""Connections to the store that wait to be accepted: each worker makes several at once."""

SIOCGIFADDR = 0x8915


def listening(host: str, port: int) -> int | None:
    """A socket that listens at an address alone; torch's own listens on all interfaces.

    None, and so torch's own, for a name: it may lead elsewhere on other machines. So too for an
    address that this machine does not have, because it stands behind another one's.
    """
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG).detach()
    except (ValueError, OSError):  # torch will say what is wrong with a port
        return None


def interface_to(host: str, port: int, hosts: int) -> str:
    """The network interface through which a host is reached; empty where that is not found.

    Several hosts do not reach each other through the loopback interface, to which the name of a
    host may lead on that host itself.
    """
    with suppress(OSError), socket.create_connection((host, port), timeout=10) as connection:
        address = connection.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):
                found = fcntl.ioctl(connection.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(found[20:24]) == address:
                    return "" if hosts > 1 and address.startswith("127.") else name
    return ""
