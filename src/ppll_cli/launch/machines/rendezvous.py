"""Finds where the machines' launchers meet, and the network interface to use. Imports no torch."""

import fcntl
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from ppll_cli.errors import ConfigError

MEETING = "PPLL_MEETING_S"
"""Environment variable: the seconds that the machines of a run wait for one another.

This is no setting of the run, because the machines connect before settings are read."""

MEETING_S = 300.0
"""Default of `PPLL_MEETING_S`."""

DAY_S = 86400

SEE = "docs/machines.md says how to start a run on several machines"

BACKLOG = 2048
"""Number of connections that may wait until the store accepts them; each worker opens several."""

SIOCGIFADDR = 0x8915  # number of the Linux call that returns the address of an interface


@dataclass(frozen=True)
class Rendezvous:
    """Where the launchers of a run meet: a torch `TCPStore` at a host and port.

    Attributes:
        rank: Number of this machine, from 0.
        machines: Number of machines.
        hosted: Whether another program, such as torchrun, runs the store.
        limit_s: Seconds that the machines wait for one another.
    """

    rank: int
    machines: int
    host: str
    port: int
    hosted: bool
    limit_s: float = MEETING_S

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Read what torchrun or srun has set; return None if the run has only one launcher.

        Raises:
            ConfigError: Several launchers were started on a machine, or a value is missing or
                wrong.
        """
        given = environment.get
        problem = "starts several launchers on a machine, but a machine needs only one"
        if "TORCHELASTIC_RUN_ID" in environment:
            number, count = "RANK", int(given("WORLD_SIZE", "1"))
            if (local := given("LOCAL_WORLD_SIZE", "1")) != "1":
                remedy = "give torchrun --nproc-per-node=1; gpus=N is the number of workers"
                raise ConfigError("nproc-per-node", local, problem, remedy)
        elif "SLURM_STEP_NUM_TASKS" in environment:
            number, count = "SLURM_PROCID", int(given("SLURM_STEP_NUM_TASKS", "1"))
            if count > int(given("SLURM_STEP_NUM_NODES", str(count))):
                remedy = "give srun --ntasks-per-node=1; gpus=N is the number of workers"
                raise ConfigError("ntasks", count, problem, remedy)
        else:
            return None
        if count == 1:
            return None
        rank = given(number, "")
        if not (rank.isdecimal() and int(rank) < count):
            wanted = f"must be the number of this machine, from 0 to {count - 1}"
            raise ConfigError(number, rank, wanted, SEE)
        host, port = given("MASTER_ADDR", ""), given("MASTER_PORT", "")
        if not host:
            raise ConfigError("MASTER_ADDR", host, "must name the host at which machines meet", SEE)
        if not (port.isdecimal() and 0 < int(port) < 2**16):
            raise ConfigError("MASTER_PORT", port, "must be a port, from 1 to 65535", SEE)
        return cls(
            rank=int(rank),
            machines=count,
            host=host,
            port=int(port),
            hosted=given("TORCHELASTIC_USE_AGENT_STORE") == "True",
            limit_s=_limit_s(given(MEETING, str(MEETING_S))),
        )


def _limit_s(given: str) -> float:
    with suppress(ValueError):
        if 1 <= (limit_s := float(given)) <= DAY_S:
            return limit_s
    raise ConfigError(MEETING, given, f"is not a number of seconds from 1 to {DAY_S}")


def listening(host: str, port: int) -> int | None:
    """Open a socket that listens only at the IP address `host`, and return its descriptor.

    Return None if `host` is a name, or if the socket cannot be opened, for example behind network
    address translation. Then torch opens its own socket, on all interfaces.
    """
    # A name is not used, because it may resolve differently on other machines.
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG).detach()
    except (ValueError, OSError):  # if the port is the problem, torch reports it
        return None


def interface_to(host: str, port: int, hosts: int) -> str:
    """Return the name of the network interface through which this machine reaches `host`.

    Return "" if no interface is found. With several hosts, return "" also for the loopback
    interface, which does not reach other hosts.

    Args:
        host: Name or IP address of a host.
        port: A port at which a program listens on this host.
        hosts: Number of hosts of the run.
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
