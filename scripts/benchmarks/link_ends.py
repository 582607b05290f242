"""A program that runs at each of the two ends of a link, for `scripts/benchmark network`.

`ping` measures the link with messages of channels. `ddp` trains with torch's
`DistributedDataParallel`. The two processes connect through a file. The first one prints the result
as JSON.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ppll_cli.prepare.preparation import prepare
from ppll_cli.transport.groups import Group, Groups
from ppll_cli.transport.network import NetworkReceiver, NetworkSender
from scripts.benchmarks.contenders import compose_settings
from scripts.benchmarks.ranks import serve
from scripts.benchmarks.torch_trainers import DataParallelTrainer

SIZES = (64, 2**22)
"""Sizes in bytes of the messages that go to the other end and back."""

TIMES = 20


class Once:
    """The orders for a rank: one order with the numbers of steps to train, then an empty one."""

    def __init__(self, steps: Sequence[int]) -> None:
        self._spans: Iterator[Sequence[int]] = iter([steps, ()])
        self.answers: list[Any] = []

    def recv(self) -> Sequence[int]:
        """Return the next order."""
        return next(self._spans)

    def send(self, answer: Any) -> None:
        """Keep an answer."""
        self.answers.append(answer)


def ddp(rank: int, store: str, warm_up: int, steps: int, overrides: Sequence[str]) -> float:
    """Train warm-up steps, then timed steps; return samples per second."""
    job = prepare(compose_settings(overrides), run_dir="").job
    orders = Once((warm_up, steps))
    serve(DataParallelTrainer, replace(job, devices=("cpu", "cpu")), rank, store, orders)
    span = orders.answers[1]
    return job.course.batch_size * steps / float(span.seconds)


def ping(rank: int, store: str) -> dict[str, float]:
    """Measure the link's latency in seconds and its speed in bytes per second."""
    torch.set_num_threads(1)
    names = {"there": Group((0, 1), "gloo"), "back": Group((1, 0), "gloo")}
    groups = Groups(f"file://{store}", rank, 2, names, os.environ.get("GLOO_SOCKET_IFNAME", ""))
    groups.open(torch.device("cpu"))
    out, into = ("there", "back") if rank == 0 else ("back", "there")
    common = 2, max(SIZES), "cpu", "ping", _same, None
    sender, receiver = NetworkSender(groups, out, *common), NetworkReceiver(groups, into, *common)
    sender.open()
    receiver.open()
    # Sizes alternate, because the load of the machine may change.
    taken_s = [
        [_round_trip_s(sender, receiver, size, rank == 0) for size in SIZES] for _ in range(TIMES)
    ]
    dist.barrier()
    small, large = SIZES
    return {
        "latency_s": median(few_s for few_s, _ in taken_s) / 2,
        "bytes_per_second": 2 * (large - small) / median(many - few for few, many in taken_s),
    }


def _same(header: Any) -> Any:
    return header


def _round_trip_s(
    sender: NetworkSender, receiver: NetworkReceiver, size: int, first: bool
) -> float:
    message = {"x": torch.zeros(size // 4)}
    start_s = perf_counter()
    if first:
        _send(sender, message)
    while not receiver.wait(1.0):
        pass
    receiver.receive()
    receiver.release()
    if not first:
        _send(sender, message)
    return perf_counter() - start_s


def _send(sender: NetworkSender, message: dict[str, Tensor]) -> None:
    while not sender.wait(1.0):
        pass
    sender.send(0, message)


def main(arguments: Sequence[str]) -> None:
    """Run `ping` or `ddp` as one of the two ends; the first end prints the result."""
    what, rank, store, *rest = arguments
    found: Any
    if what == "ping":
        found = ping(int(rank), store)
    else:
        warm_up, steps, *overrides = rest
        found = ddp(int(rank), store, int(warm_up), int(steps), overrides)
    if rank == "0":
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()
    os._exit(0)  # a normal exit could hang, because threads of channels still wait for messages


if __name__ == "__main__":
    main(sys.argv[1:])
