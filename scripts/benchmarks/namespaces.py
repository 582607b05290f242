"""Makes two network namespaces joined by a link, which behave like two machines.

It needs Linux, the permission to make namespaces, and Debian's package iproute2.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

ADDRESSES = ("10.78.0.1", "10.78.0.2")


class NamespaceError(Exception):
    """Raised when namespaces cannot be made on this machine."""


class Namespaces:
    """Two network namespaces and their link. `links` has the network interfaces at its ends."""

    def __init__(self) -> None:
        self.names = [f"ppll-{os.getpid()}-{number}" for number in range(2)]
        self.links = [f"pv{os.getpid()}n{number}" for number in range(2)]

    def command(self, number: int, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a command in namespace `number`."""
        return ["ip", "netns", "exec", self.names[number], *command]

    def shape(self, rate: str | None) -> None:
        """Limit the link in each direction to a rate such as `200mbit`; None for no limit.

        Raises:
            NamespaceError: The limit cannot be set; the message has the reason.
        """
        for name, link in zip(self.names, self.links, strict=True):
            queue = f"-n {name} qdisc"
            subprocess.run(
                ["tc", *f"{queue} del dev {link} root".split()], capture_output=True, check=False
            )
            if rate is not None:
                shaped = f"{queue} add dev {link} root tbf rate {rate} burst 128kb latency 100ms"
                _do(["tc", *shaped.split()])

    def cut(self) -> None:
        """Interrupt the link.

        Raises:
            NamespaceError: The link cannot be interrupted; the message has the reason.
        """
        _do(["ip", "-n", self.names[1], "link", "set", self.links[1], "down"])


@contextmanager
def namespaces() -> Iterator[Namespaces]:
    """Provide namespaces with the addresses `ADDRESSES`, and delete them at the end.

    Raises:
        NamespaceError: Namespaces cannot be made; the message has the reason.
    """
    made = Namespaces()
    if shutil.which("ip") is None or shutil.which("tc") is None:
        raise NamespaceError("install the programs `ip` and `tc` (Debian: iproute2)")
    try:
        for name in made.names:
            _do(["ip", "netns", "add", name])
        first, second = made.links
        _do(["ip", "link", "add", first, "type", "veth", "peer", "name", second])
        for name, link, address in zip(made.names, made.links, ADDRESSES, strict=True):
            _do(["ip", "link", "set", link, "netns", name])
            _do(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", link])
            _do(["ip", "-n", name, "link", "set", link, "up"])
            _do(["ip", "-n", name, "link", "set", "lo", "up"])
        yield made
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _do(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip()}")


def as_torchrun(rank: int, host: str, port: int | str, machines: int = 2) -> dict[str, str]:
    """Return the environment variables that torchrun sets on one of several machines."""
    return {
        "TORCHELASTIC_RUN_ID": "several machines",
        "LOCAL_WORLD_SIZE": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(machines),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }
