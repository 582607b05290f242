"""`scripts/benchmark transport`: time of a message from one process to another.

Another process sends a tensor to this process. The time is measured from before `send` until
`receive` has returned, on a clock that both processes share. After each message the sender
computes, as a stage does. For comparison, a copy of the same tensor within one process is timed.
Messages and copies are repeated alternately; the results are medians.

If there are CUDA devices, messages from the first device to the last one are also measured. Such a
message is sent alone, and its time ends when the tensor is on the device. In the row "bulk", many
messages follow one another without a pause, and are compared with copies.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ppll_cli.leaves import forkserver
from ppll_cli.transport.channel import Receiver, Sender, Transport
from ppll_cli.transport.queue import QueueTransport
from ppll_cli.transport.ring import RingTransport
from scripts.benchmarks.runs import machine, save

RESULT = Path("outputs/benchmark/transport.json")
SIZES = [4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
BULK = 256 << 20
"""Bytes of a bulk message on CUDA. The message is so large that the host's calls take less time
than the copy."""
SLOTS = 3
LIMIT_S = 60.0

Senders = dict[str, Sender]
Receivers = dict[str, Receiver]


def main(arguments: Sequence[str]) -> None:
    """Measure all sizes, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark transport", description=__doc__)
    parser.add_argument("--long", action="store_true", help="200 repetitions instead of 40")
    options = parser.parse_args(arguments)
    repetitions = 200 if options.long else 40
    result = {"machine": machine(), "rows": measure(SIZES, repetitions), "cuda": None}
    if torch.cuda.is_available():
        devices = "cuda:0", f"cuda:{torch.cuda.device_count() - 1}"
        result["cuda"] = measure_edge(*devices, SIZES, BULK, repetitions)
    save(result, RESULT)
    _print(result)


def measure(sizes: Sequence[int], repetitions: int) -> list[dict[str, float]]:
    """Measure the time of messages of each size, in bytes, with each transport.

    Returns:
        For each size: `bytes`, the median seconds of `memcpy`, `ring` and `queue`, and the ratios
            `ring_speed_over_memcpy` and `queue_time_over_ring`.
    """
    torch.set_num_threads(1)
    senders, receivers = _channels(1, max(sizes), "cpu", "cpu")
    child = forkserver.Child(_produce, senders, sizes, repetitions)
    _open(receivers.values())
    rows = []
    for size in sizes:
        source, target = torch.ones(2, size, dtype=torch.uint8)
        times: dict[str, list[float]] = {"memcpy": [], **{name: [] for name in receivers}}
        for _ in range(repetitions):
            for name, receiver in receivers.items():
                times[name].append(_receive(receiver))
            times["memcpy"].append(_timed(lambda s=source, t=target: t.copy_(s)))  # type: ignore[misc]
        row = _medians(times)
        speed = row["memcpy"] / row["ring"]
        ratios = {
            "ring_speed_over_memcpy": speed,
            "queue_time_over_ring": row["queue"] / row["ring"],
        }
        rows.append({"bytes": float(size), **row, **ratios})
    child.link.send_bytes(b"")
    child.process.join(LIMIT_S)
    return rows


def measure_edge(
    source: str, target: str, sizes: Sequence[int], bulk: int, repetitions: int
) -> dict[str, Any]:
    """Measure the time of messages between processes on two devices, or on the same device.

    Returns:
        The devices; `rows` with, for each size, `bytes` and the median seconds of `copy` (from
            device to device), `ring` and `queue`; and `bulk`, a row with the seconds per message
            and `ring_speed_over_copy`.
    """
    single, singles = _channels(1, max(sizes), source, target)
    steady, steadies = _channels(SLOTS, bulk, source, target)
    child = forkserver.Child(_produce_edge, single, steady, source, sizes, bulk, repetitions)
    _open([*singles.values(), *steadies.values()])
    rows = []
    for size in sizes:
        times = {}
        for name, receiver in singles.items():
            child.link.send_bytes(b"")
            times[name] = [_receive(receiver, target) for _ in range(repetitions)]
        times["copy"] = [_copy_s(size, source, target) for _ in range(repetitions)]
        rows.append({"bytes": float(size), **_medians(times)})
    row: dict[str, float] = {"bytes": float(bulk)}
    for name, receiver in steadies.items():
        child.link.send_bytes(b"")
        row[name] = _message_s(receiver, repetitions, target)
    row |= _medians({"copy": [_copy_s(bulk, source, target) for _ in range(repetitions)]})
    row["ring_speed_over_copy"] = row["copy"] / row["ring"]
    child.link.send_bytes(b"")
    child.process.join(LIMIT_S)
    return {"source": source, "target": target, "rows": rows, "bulk": row}


def _channels(slots: int, size: int, source: str, target: str) -> tuple[Senders, Receivers]:
    transports: dict[str, Transport] = {
        "ring": RingTransport(depth=slots),
        "queue": QueueTransport(depth=slots),
    }
    senders: Senders = {}
    receivers: Receivers = {}
    for name, transport in transports.items():
        obstacle = transport.obstacle(slots * size, [source, target])
        if obstacle is None:
            senders[name], receivers[name] = transport.channel(slots, size, source, target)
        elif name == "ring":
            raise SystemExit(f"transport=ring: {obstacle}")
    return senders, receivers


def _open(ends: Iterable[Sender | Receiver]) -> None:
    for end in ends:
        end.open()


def _produce(
    senders: Mapping[str, Sender], sizes: Sequence[int], repetitions: int, ended: Connection
) -> None:
    torch.set_num_threads(1)
    _open(senders.values())
    matrix = torch.rand(256, 256)
    for size in sizes:
        tensor = torch.ones(size, dtype=torch.uint8)
        for _ in range(repetitions):
            for sender in senders.values():
                _send(sender, tensor)
                for _ in range(20):
                    matrix = (matrix @ matrix).clamp(0, 1)
                _wait(sender)  # else the next message would wait for the receiver
    _wait_for_word(ended)


def _produce_edge(
    single: Mapping[str, Sender],
    steady: Mapping[str, Sender],
    device: str,
    sizes: Sequence[int],
    bulk: int,
    repetitions: int,
    go: Connection,
) -> None:
    # Send the messages of `measure_edge`. Before each sender, wait for a word on `go`.
    torch.set_num_threads(1)
    _open([*single.values(), *steady.values()])
    for size in sizes:
        tensor = torch.ones(size, dtype=torch.uint8, device=device)
        for sender in single.values():
            _wait_for_word(go)
            for _ in range(repetitions):
                _synchronize(device)
                _send(sender, tensor)
                _wait(sender)  # the only slot is free again when the tensor has arrived
    tensor = torch.ones(bulk, dtype=torch.uint8, device=device)
    for sender in steady.values():
        _wait_for_word(go)
        _synchronize(device)
        for _ in range(repetitions):
            _send(sender, tensor)
    _wait_for_word(go)  # the sent memory is valid only while this process runs


def _send(sender: Sender, tensor: Tensor) -> None:
    _wait(sender)
    sender.send(perf_counter(), {"x": tensor})


def _wait(end: Sender | Receiver) -> None:
    if not end.wait(LIMIT_S):
        raise TimeoutError(f"no message, or no free slot, from the other process for {LIMIT_S:g} s")


def _wait_for_word(connection: Connection) -> None:
    if not connection.poll(LIMIT_S):
        raise TimeoutError(f"no message from the other process for {LIMIT_S:g} s")
    connection.recv_bytes()


def _receive(receiver: Receiver, device: str = "cpu") -> float:
    _wait(receiver)
    sent_s, tensors = receiver.receive()
    _synchronize(device)
    seconds = perf_counter() - float(str(sent_s))
    del tensors
    receiver.release()
    return seconds


def _message_s(receiver: Receiver, messages: int, device: str) -> float:
    _receive(receiver, device)
    start = perf_counter()
    for _ in range(messages - 1):
        _wait(receiver)
        receiver.receive()
        receiver.release()
    _synchronize(device)
    return (perf_counter() - start) / (messages - 1)


def _copy_s(size: int, source: str, target: str) -> float:
    here = torch.ones(size, dtype=torch.uint8, device=source)
    there = torch.empty(size, dtype=torch.uint8, device=target)
    if source == "cpu":
        return _timed(lambda: there.copy_(here))
    with torch.cuda.device(source):  # this device makes the copy
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        there.copy_(here, non_blocking=True)
        last.record()
        last.synchronize()
    return float(first.elapsed_time(last)) / 1000


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.current_stream(device).synchronize()


def _medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    # In the first fifth of the times, memory is new and slow.
    return {name: median(seconds[len(seconds) // 5 :]) for name, seconds in times.items()}


def _timed(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _print(result: Mapping[str, Any]) -> None:
    table = Table("message", "memcpy", "ring", "queue", "ring / memcpy speed", "queue / ring time")
    for row in result["rows"]:
        ratios = [f"{row[key]:.2f}" for key in ("ring_speed_over_memcpy", "queue_time_over_ring")]
        table.add_row(*_cells(row, "memcpy"), *ratios)
    Console().print(table)
    cuda = result["cuda"]
    if cuda is None:
        return
    table = Table("message", "copy", "ring", "queue", title=f"{cuda['source']} to {cuda['target']}")
    for row in cuda["rows"]:
        table.add_row(*_cells(row, "copy"))
    table.add_row(*_cells(cuda["bulk"], "copy"), style="bold")
    Console().print(table)
    Console().print(f"bulk: {cuda['bulk']['ring_speed_over_copy']:.2f} of a copy's speed")


def _cells(row: Mapping[str, float], yardstick: str) -> list[str]:
    names = (yardstick, "ring", "queue")
    times = [f"{1000 * row[name]:.3f} ms" if name in row else "" for name in names]
    return [f"{int(row['bytes']) >> 10} KiB", *times]
