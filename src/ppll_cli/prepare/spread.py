"""Distributes workers over several machines: the first workers get the first machine."""

import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import ConfigDict

from ppll_cli import __version__
from ppll_cli.config.settings import Settings, usable_cores
from ppll_cli.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """A machine of a run.

    Attributes:
        devices: Number of CUDA devices.
        cores: Number of usable CPU cores.
        versions: Versions of software that must be equal on all machines, by name.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    host: str
    devices: int
    cores: int
    versions: Mapping[str, str]

    @classmethod
    def here(cls) -> Self:
        """Describe this machine."""
        import torch

        from ppll_cli.leaves import cuda

        versions = {"ppll-run": __version__, "torch": torch.__version__}
        versions["python"] = ".".join(platform.python_version_tuple()[:2])
        return cls(socket.gethostname(), cuda.device_count(), usable_cores(), versions)


def spread(
    settings: Settings, workers: int, machines: Sequence[Machine]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the device of each worker, and the number of its machine.

    On CPU, the numbers of workers on two machines differ by at most one.

    Raises:
        ConfigError: There are too few devices, or so many machines that one would have no worker.
    """
    slots = [(f"cuda:{d}", n) for n, each in enumerate(machines) for d in range(each.devices)]
    if settings.device == "cuda" and not slots:
        raise ConfigError("device", "cuda", "no machine has a CUDA device", "use device=cpu")
    left_open = settings.device == "auto" and settings.gpus is None
    if settings.device == "cpu" or not slots or (left_open and len(slots) < workers):
        slots = [("cpu", worker * len(machines) // workers) for worker in range(workers)]
    if len(slots) < workers:
        remedy = f"use gpus={len(slots)} or device=cpu"
        there = f"there are {len(slots)} CUDA devices on {len(machines)} machines"
        raise ConfigError("gpus", workers, there, remedy)
    devices, homes = zip(*slots[:workers], strict=True)
    if idle := sorted({*range(len(machines))} - {*homes}):
        name = f"machine {idle[0]} ({machines[idle[0]].host})"
        remedy = f"use more gpus, or {len(machines) - len(idle)} machines"
        raise ConfigError("gpus", workers, f"leaves no worker for {name}", remedy)
    return devices, homes


def threads_of(settings: Settings, machines: Sequence[Machine], homes: Sequence[int]) -> int:
    """Return the number of threads of each worker: `threads` or, if unset, a share of the cores.

    Each machine divides its cores equally among its workers, and the smallest of these shares
    counts. `homes` has the number of each worker's machine.
    """
    shares = (each.cores // homes.count(n) for n, each in enumerate(machines))
    return settings.threads or max(1, min(shares))
