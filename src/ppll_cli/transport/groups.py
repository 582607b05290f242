"""Process groups of torch.distributed: how a run's workers find one another and connect.

Every group is made by all workers in the same order and connected before training, because groups
that are made on first use hang where two of them are made in another order.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ProcessGroup = Any
"""torch's, of which its stubs know too little."""

FOR_EVER = timedelta(days=365)
"""Whoever waits for a worker that is gone is stopped by its launcher; nothing here judges."""

JUDGES = (
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "TORCH_NCCL_ENABLE_MONITORING",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS",
)
"""What would have NCCL's own watch end a process: before its last word, or its launcher's, or where
all machines were suspended."""

CONNECTING = timedelta(minutes=5)

ASKED = 10
"""How often a worker asks for the time."""


@dataclass(frozen=True)
class Group:
    """Some of the workers.

    Attributes:
        ranks: Their numbers.
        backend: What carries the data: gloo, or NCCL, which needs a CUDA device for each.
        directed: There are two, and the first one sends to the second; else all do the same.
    """

    ranks: tuple[int, ...]
    backend: str
    directed: bool = False


class Groups:
    """The groups of a run, as one of its workers sees them.

    Args:
        store: Where the workers find one another: `file://PATH` of a file that is not there yet, in
            a folder that all of them see, or `tcp://HOST:PORT/PREFIX` of a store that is there.
        rank: This worker's number.
        workers: How many there are.
        groups: By name, in an order that is the same for all of them.
        interface: The network interface through which gloo and NCCL connect; empty: what they
            find themselves.
        apart: Whether they are on several machines, whose clocks differ.

    Attributes:
        ahead_s: How much further this worker's clock is than worker 0's, once it is open.
    """

    def __init__(
        self,
        store: str,
        rank: int,
        workers: int,
        groups: Mapping[str, Group],
        interface: str,
        apart: bool = False,
    ) -> None:
        self.rank, self.workers, self.groups = rank, workers, groups
        self._store, self._interface, self._apart = store, interface, apart
        self.ahead_s = 0.0
        self._made: dict[str, ProcessGroup] = {}

    def open(self, device: torch.device) -> None:
        """Meet the others and connect to those with whom this worker is in a group."""
        if self._interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", self._interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", self._interface)
        for name in JUDGES:
            os.environ.setdefault(name, "0")
        dist.init_process_group(
            "gloo",
            store=self._make_store(),
            rank=self.rank,
            world_size=self.workers,
            timeout=FOR_EVER,
        )
        if self._apart:
            self._compare_clocks()
        for name, group in self.groups.items():
            made: Any = dist.new_group(list(group.ranks), backend=group.backend, timeout=FOR_EVER)
            if self.rank in group.ranks:
                self._made[name] = made
                self._connect(name, torch.zeros(1, device=self.carrier(name, device)))

    def _connect(self, name: str, number: Tensor) -> None:
        """Use a group as it is going to be used; NCCL connects for each kind of use apart."""
        group, made = self.groups[name], self._made[name]
        if not group.directed:
            dist.all_reduce(number, group=made)
        elif self.rank == group.ranks[0]:
            dist.send(number, group.ranks[1], group=made)
        else:
            dist.recv(number, group.ranks[0], group=made)

    def _compare_clocks(self) -> None:
        """Ask worker 0 for the time, and take the answer that came soonest.

        It was given somewhere between question and answer: half of that is how wrong it can be.
        """
        clock_s = torch.zeros(1, dtype=torch.float64)
        if self.rank == 0:
            for other in range(1, self.workers):
                for _ in range(ASKED):
                    dist.recv(clock_s, other)
                    dist.send(clock_s.fill_(perf_counter()), other)
            return
        soonest_s = inf
        for _ in range(ASKED):
            asked_s = perf_counter()
            dist.send(clock_s, 0)
            dist.recv(clock_s, 0)
            answered_s = perf_counter()
            if answered_s - asked_s < soonest_s:
                soonest_s = answered_s - asked_s
                self.ahead_s = (asked_s + answered_s) / 2 - float(clock_s)

    def of(self, name: str) -> ProcessGroup:
        """A group that this worker is in, once it is open."""
        return self._made[name]

    def carrier(self, name: str, device: torch.device) -> torch.device:
        """Where a group takes tensors from: the worker's device, or the host's memory."""
        return device if self.groups[name].backend == "nccl" else torch.device("cpu")

    def ranks(self, name: str) -> Sequence[int]:
        """Who is in a group."""
        return self.groups[name].ranks

    def close(self) -> None:
        """Leave NCCL's groups, of which torch complains otherwise; threads still use others."""
        for name, made in self._made.items():
            if self.groups[name].backend == "nccl":
                dist.destroy_process_group(made)

    def _make_store(self) -> Any:
        kind, _, place = self._store.partition("://")
        if kind == "file":
            return dist.FileStore(place, self.workers)  # type: ignore[attr-defined]
        place, _, prefix = place.partition("/")
        host, _, port = place.rpartition(":")
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, int(port), is_master=False, timeout=CONNECTING
        )
        return dist.PrefixStore(f"{prefix}/workers", store)  # type: ignore[attr-defined]


def backend(places: Sequence[tuple[int, str]]) -> str:
    """What carries data between workers on these machines and devices."""
    own = len(set(places)) == len(places)
    on_cuda = all(device.startswith("cuda") for _, device in places)
    return "nccl" if own and on_cuda and dist.is_nccl_available() else "gloo"
