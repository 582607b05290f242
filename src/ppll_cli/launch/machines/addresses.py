"""Addresses and network interfaces of this machine. Imports no torch."""

import fcntl
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address

BACKLOG = 2048
"""How many connections may wait until the store accepts them; each worker opens several at once."""

SIOCGIFADDR = 0x8915


def listening(host: str, port: int) -> int | None:
    """Return the descriptor of a socket that listens only at the given IP address.

    Return None if no such socket can be opened; then torch opens its own socket, on all interfaces.
    The function also returns None for a host name, because it may resolve differently on other
    machines. It cannot open a socket for an address that this machine does not have, for example
    behind network address translation.
    """
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG).detach()
    except (ValueError, OSError):  # if the port is the problem, torch reports it
        return None


def interface_to(host: str, port: int, hosts: int) -> str:
    """Return the network interface through which this machine reaches a host.

    Return an empty string if no interface is found. If the run has several `hosts`, an empty string
    also stands for the loopback interface: a host's own name may resolve to a loopback address, but
    the loopback interface does not reach other hosts.
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
