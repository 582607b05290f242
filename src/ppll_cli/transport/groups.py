"""Creates the process groups of torch.distributed, and connects their workers before training.

Only workers that belong to at least one group take part.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ProcessGroup = Any
"""Type of torch's process groups; `Any`, because torch's type stubs are incomplete."""

FOR_EVER = timedelta(days=365)
"""Timeout of operations, never reached: the launcher stops workers that wait for a dead worker."""

WATCHDOG_SWITCHES = (
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "TORCH_NCCL_ENABLE_MONITORING",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS",
)
"""Environment variables that turn NCCL's watchdog off when they are 0. The watchdog could end a
process before its failure is reported, or after all machines were suspended for a while."""

CONNECTING = timedelta(minutes=5)
"""Time limit for connecting to the store."""

ASKED = 10
"""Number of times that a worker asks for the time on worker 0's clock."""


@dataclass(frozen=True)
class Group:
    """Describes a process group that is to be created.

    Attributes:
        ranks: Ranks of its workers.
        backend: "gloo" or "nccl". "nccl" needs a separate CUDA device for each worker.
        directed: Whether the group has two workers, of which the first sends to the second. The
            workers of other groups do collective operations.
    """

    ranks: tuple[int, ...]
    backend: str
    directed: bool = False


@dataclass(eq=False)
class Groups:
    """The process groups of a run. Only a worker that is in at least one group has this object.

    Attributes:
        store: Address of the store by which the workers find one another: `file://PATH` of a file
            that does not exist yet, in a folder that all workers can access, or
            `tcp://HOST:PORT/PREFIX` of a running store.
        rank: Rank of this worker among the workers that are in at least one group.
        workers: Number of workers that are in at least one group.
        groups: All groups by name, in the same order in all workers.
        interface: Network interface for gloo and NCCL; if empty, they choose it themselves.
        apart: Whether the workers are on several machines, so that their clocks differ.
        ahead_s: Seconds by which this worker's clock is ahead of worker 0's; 0 before `open`, and
            always 0 if `apart` is False.
    """

    store: str
    rank: int
    workers: int
    groups: Mapping[str, Group]
    interface: str
    apart: bool = False
    ahead_s: float = field(init=False, default=0.0)
    _made: dict[str, ProcessGroup] = field(init=False, default_factory=dict)

    def open(self, device: torch.device) -> None:
        """Find the other workers, create all groups, and connect those that contain this worker.

        If `apart` is True, also measure `ahead_s`. `device` is this worker's device.
        """
        if self.interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", self.interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", self.interface)
        for name in WATCHDOG_SWITCHES:
            os.environ.setdefault(name, "0")
        dist.init_process_group(
            "gloo",
            store=self._make_store(),
            rank=self.rank,
            world_size=self.workers,
            timeout=FOR_EVER,
        )
        if self.apart:
            self._compare_clocks()
        # All workers create and connect the groups in the same order. If two workers connected two
        # groups in different orders, for example at their first use, they could hang.
        for name, group in self.groups.items():
            made: Any = dist.new_group(list(group.ranks), backend=group.backend, timeout=FOR_EVER)
            if self.rank in group.ranks:
                self._made[name] = made
                self._connect(name, torch.zeros(1, device=self.carrier(name, device)))

    def _connect(self, name: str, number: Tensor) -> None:
        # NCCL connects separately for transfers and for collective operations. A group is used
        # only for one of the two.
        group, made = self.groups[name], self._made[name]
        if not group.directed:
            dist.all_reduce(number, group=made)
        elif self.rank == group.ranks[0]:
            dist.send(number, group.ranks[1], group=made)
        else:
            dist.recv(number, group.ranks[0], group=made)

    def _compare_clocks(self) -> None:
        clock_s = torch.zeros(1, dtype=torch.float64)
        if self.rank == 0:
            for other in range(1, self.workers):
                for _ in range(ASKED):
                    dist.recv(clock_s, other)
                    dist.send(clock_s.fill_(perf_counter()), other)
            return
        soonest_s = inf  # the fastest answer gives the most exact result
        for _ in range(ASKED):
            asked_s = perf_counter()
            dist.send(clock_s, 0)
            dist.recv(clock_s, 0)
            answered_s = perf_counter()
            if answered_s - asked_s < soonest_s:
                soonest_s = answered_s - asked_s
                self.ahead_s = (asked_s + answered_s) / 2 - float(clock_s)

    def of(self, name: str) -> ProcessGroup:
        """Return one of this worker's groups. Call `open` first."""
        return self._made[name]

    def carrier(self, name: str, device: torch.device) -> torch.device:
        """Return the device that tensors must be on for the operations of a group.

        With the backend "nccl", this is `device`, the worker's own. With "gloo", it is the CPU.
        """
        return device if self.groups[name].backend == "nccl" else torch.device("cpu")

    def ranks(self, name: str) -> Sequence[int]:
        """Return the ranks of a group's workers."""
        return self.groups[name].ranks

    def close(self) -> None:
        """Destroy the groups of NCCL at the end of the worker's process."""
        # If NCCL's groups were not destroyed, torch would warn. gloo's groups are not destroyed,
        # because threads may still use them.
        for name, made in self._made.items():
            if self.groups[name].backend == "nccl":
                dist.destroy_process_group(made)

    def _make_store(self) -> Any:
        kind, _, place = self.store.partition("://")
        if kind == "file":
            return dist.FileStore(place, self.workers)  # type: ignore[attr-defined]
        place, _, prefix = place.partition("/")
        host, _, port = place.rpartition(":")
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, int(port), is_master=False, timeout=CONNECTING
        )
        return dist.PrefixStore(f"{prefix}/workers", store)  # type: ignore[attr-defined]


def backend(places: Sequence[tuple[int, str]]) -> str:
    """Return the backend for workers at `places` (number of the machine, device).

    It is "nccl" if each worker has a CUDA device of its own and torch has NCCL, else "gloo".
    """
    own = len(set(places)) == len(places)
    on_cuda = all(device.startswith("cuda") for _, device in places)
    return "nccl" if own and on_cuda and dist.is_nccl_available() else "gloo"
