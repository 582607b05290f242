"""`scripts/benchmark transport`: how long a message takes from one process to another.

A tensor goes from a worker to this process: the time runs from before `send` until `receive` has
returned, by the clock that both share. After each message the producer computes, as a stage does.
Beside it stands a copy of the same tensor inside one process. Medians of interleaved repetitions.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from ppll_cli.benchmarks.runs import machine
from ppll_cli.runtime import forkserver
from ppll_cli.transport.channel import Receiver, Sender
from ppll_cli.transport.naive import NaiveTransport
from ppll_cli.transport.ring import RingTransport

RESULT = Path("outputs/benchmark/transport.json")
SIZES = [4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
SLOTS = 3
LIMIT_S = 60.0


def main(arguments: Sequence[str]) -> None:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark transport", description=__doc__)
    parser.add_argument("--long", action="store_true", help="200 repetitions instead of 40")
    options = parser.parse_args(arguments)
    rows = measure(SIZES, 200 if options.long else 40)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    _print(rows)


def measure(sizes: Sequence[int], repetitions: int) -> list[dict[str, float]]:
    """Time messages of each size, in bytes, through each transport.

    Returns:
        For each size: `bytes`, the median seconds of `memcpy`, `ring` and `naive`, and the ratios
        `ring_speed_over_memcpy` and `naive_time_over_ring`.
    """
    forkserver.start()
    torch.set_num_threads(1)
    channels: dict[str, tuple[Sender, Receiver]] = {
        "ring": RingTransport(depth=SLOTS).channel(SLOTS, max(sizes)),
        "naive": NaiveTransport(depth=SLOTS).channel(SLOTS, max(sizes)),
    }
    senders = {name: sender for name, (sender, _) in channels.items()}
    receivers = {name: receiver for name, (_, receiver) in channels.items()}
    process = forkserver.context().Process(
        target=_produce, args=(senders, sizes, repetitions), daemon=True
    )
    process.start()
    rows = []
    for size in sizes:
        source, target = torch.ones(2, size, dtype=torch.uint8)
        times: dict[str, list[float]] = {"memcpy": [], **{name: [] for name in receivers}}
        for _ in range(repetitions):
            for name, receiver in receivers.items():
                times[name].append(_receive(receiver))
            times["memcpy"].append(_timed(lambda s=source, t=target: t.copy_(s)))  # type: ignore[misc]
        # The first ones find memory that was never touched.
        row = {name: median(seconds[repetitions // 5 :]) for name, seconds in times.items()}
        speed = row["memcpy"] / row["ring"]
        ratios = {
            "ring_speed_over_memcpy": speed,
            "naive_time_over_ring": row["naive"] / row["ring"],
        }
        rows.append({"bytes": float(size), **row, **ratios})
    process.join(LIMIT_S)
    return rows


def _produce(senders: Mapping[str, Sender], sizes: Sequence[int], repetitions: int) -> None:
    """The other process."""
    torch.set_num_threads(1)
    matrix = torch.rand(256, 256)
    for size in sizes:
        tensor = torch.ones(size, dtype=torch.uint8)
        for _ in range(repetitions):
            for sender in senders.values():
                if not sender.wait(LIMIT_S):
                    raise TimeoutError("no slot became free")
                sender.send(perf_counter(), {"x": tensor})
                for _ in range(20):
                    matrix = (matrix @ matrix).clamp(0, 1)


def _receive(receiver: Receiver) -> float:
    if not receiver.wait(LIMIT_S):
        raise TimeoutError("no message came")
    sent_s, tensors = receiver.receive()
    seconds = perf_counter() - float(str(sent_s))
    del tensors
    receiver.release()
    return seconds


def _timed(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _print(rows: Sequence[Mapping[str, float]]) -> None:
    table = Table("message", "memcpy", "ring", "naive", "ring / memcpy speed", "naive / ring time")
    for row in rows:
        times = [f"{1000 * row[name]:.3f} ms" for name in ("memcpy", "ring", "naive")]
        ratios = [f"{row[key]:.2f}" for key in ("ring_speed_over_memcpy", "naive_time_over_ring")]
        table.add_row(f"{int(row['bytes']) >> 10} KiB", *times, *ratios)
    Console().print(table)
