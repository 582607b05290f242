"""Measures facts about CUDA on which the program's design relies, and prints a JSON line for each.

Call it as `python -m scripts.check_gpu.probe cuda`, or with `cpu` to test the probe itself. Times
of the host are the times until a call returns to Python.
"""

import json
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import Event, Thread
from time import perf_counter
from types import TracebackType
from typing import Self

import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.models.vit import Block

BUSY_CYCLES_PER_S = 1.7e9
TURNS = 300
LIMIT_S = 20.0


class Heartbeat:
    """A thread that wakes up every 5 ms, to measure for how long other threads hold the GIL.

    `gap_s` is the longest time between two wake-ups so far.
    """

    def __enter__(self) -> Self:
        self.gap_s, self._end = 0.0, Event()
        self._thread = Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        last_s = perf_counter()
        while not self._end.wait(0.005):
            now_s = perf_counter()
            self.gap_s, last_s = max(self.gap_s, now_s - last_s), now_s


class Probe:
    """Measures the facts of one device, "cuda:0" or "cpu"."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def run(self) -> None:
        """Measure and print all facts; print "failed" if a measurement raises an exception."""
        steps: list[Callable[[], None]] = [self.start, self.waits, self.calls]
        if self.cuda:
            steps += [self.full_queue, self.shared_events]
        steps += [self.graphs]
        for step in steps:
            try:
                step()
            except Exception as error:  # continue with the other facts
                say("failed", step=step.__name__, error=repr(error)[:300])

    def start(self) -> None:
        """Measure how long CUDA takes to start, and for how long it blocks other threads.

        A launcher regards a worker without a heartbeat for 60 s as stopped.
        """
        with Heartbeat() as heartbeat:
            start_s = perf_counter()
            if self.cuda:
                torch.cuda.set_device(self.device)
            torch.ones(8, device=self.device).add_(1)
            self._synchronize()
            kernel_s = perf_counter() - start_s
            (torch.rand(64, 64, device=self.device) @ torch.rand(64, 64, device=self.device)).sum()
            self._synchronize()
            product_s = perf_counter() - start_s
        say("start", first_kernel_s=kernel_s, first_product_s=product_s, gil_gap_s=heartbeat.gap_s)

    def waits(self) -> None:
        """Find out which calls of the host wait until the device has done 0.3 s of queued work."""
        there = torch.arange(64)
        pinned = there.pin_memory() if self.cuda else there
        like, ones = torch.ones(3, device=self.device), [1.0] * 32
        calls: dict[str, Callable[[], object]] = {
            "pageable": lambda: there.to(self.device),
            "pageable, non_blocking": lambda: there.to(self.device, non_blocking=True),
            "pinned, non_blocking": lambda: pinned.to(self.device, non_blocking=True),
            "new_tensor(list)": lambda: like.new_tensor(ones),
            "clone": like.clone,
            "item": lambda: like[0].item(),
        }
        found = {}
        for name, call in calls.items():
            call()
            self._synchronize()
            self._keep_busy(0.3)
            start_s = perf_counter()
            call()
            found[name] = perf_counter() - start_s
            self._synchronize()
        right = not self.cuda or found["pinned, non_blocking"] < 0.1
        say("waits_s", right=right, **found)

    def calls(self) -> None:
        """Measure the host's time for small calls."""
        values = torch.ones(1024, device=self.device)
        weight = torch.ones(8, device=self.device, requires_grad=True)

        def backward() -> None:
            (weight * 1).sum().backward()  # type: ignore[no-untyped-call]

        found = {
            "launch": self._host_us(lambda: values.add_(1)),
            "forward and backward": self._host_us(backward, 500),
        }
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            shared = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
            stream, generator = torch.cuda.current_stream(), torch.cuda.default_generators[0]
            shared.record()
            found["record"] = self._host_us(event.record)
            found["record, shared"] = self._host_us(shared.record)
            found["wait for an event"] = self._host_us(lambda: stream.wait_event(shared))
            found["seed"] = self._host_us(lambda: generator.manual_seed(5))
        say("calls_us", **found)

    def full_queue(self) -> None:
        """Measure whether launching kernels into a full queue blocks other threads."""
        values = torch.ones(8, device=self.device)
        self._synchronize()
        self._keep_busy(2.0)
        with Heartbeat() as heartbeat:
            start_s = perf_counter()
            for _ in range(4000):
                values.add_(1)
            host_s = perf_counter() - start_s
        self._synchronize()
        say("full_queue", launches=4000, host_s=host_s, gil_gap_s=heartbeat.gap_s)

    def shared_events(self) -> None:
        """Check that two CUDA events synchronise two processes, one event for each direction."""
        context = torch.multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        child = context.Process(target=_add_up, args=(theirs, str(self.device)))
        child.start()
        memory = torch.zeros(1 << 18, device=self.device)
        self._synchronize()
        filled = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
        filled.record()
        ours.send(memory)
        ours.send(bytes(filled.ipc_handle()))  # type: ignore[no-untyped-call]
        read = _event_of(self.device, _received(ours))
        start_s = perf_counter()
        for turn in range(1, TURNS + 1):
            if turn > 1:
                torch.cuda.current_stream().wait_event(read)
            _sleep(200_000)  # keeps the device busy, so that the host runs ahead
            memory.fill_(turn)
            filled.record()
            ours.send(None)
            _received(ours)
        self._synchronize()
        turn_us = 1e6 * (perf_counter() - start_s) / TURNS
        total = _received(ours)
        ours.send(None)
        child.join(LIMIT_S)
        say("shared_events", right=total == TURNS * (TURNS + 1) / 2, turn_us=turn_us)

    def graphs(self) -> None:
        """Measure a stage's step with and without a CUDA graph, which saves kernel launches."""
        sizes = {"a stage of a small ViT": (128, 4, 4, 65, 64 if self.cuda else 1, 100)}
        if self.cuda:
            sizes["half of ViT-Base"] = (768, 12, 6, 197, 128, 15)
            sizes["a quarter of ViT-Base"] = (768, 12, 3, 197, 32, 40)
        for name, (dim, heads, depth, tokens, samples, steps) in sizes.items():
            step = _stage_step(dim, heads, depth, tokens, samples, self.device)
            for _ in range(3):
                step()
            repeated = steps if self.cuda else 2
            step_ms, host_ms = self._step_ms(step, repeated)
            found = {"eager_ms": step_ms, "eager_host_ms": host_ms}
            if self.cuda:
                graph_ms = self._step_ms(self._captured(step), repeated)
                found["graph_ms"], found["graph_host_ms"] = graph_ms
            say("graphs", what=f"{name}, {samples} samples, bf16", **found)

    def _captured(self, step: Callable[[], None]) -> Callable[[], None]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def _step_ms(self, step: Callable[[], None], repeated: int) -> tuple[float, float]:
        # Return two times in ms: of a step, and of the host's calls that queue the step.
        self._synchronize()
        start_s = perf_counter()
        for _ in range(repeated):
            step()
        host_s = perf_counter() - start_s
        self._synchronize()
        return 1e3 * (perf_counter() - start_s) / repeated, 1e3 * host_s / repeated

    def _host_us(self, call: Callable[[], object], repeated: int = 2000) -> float:
        # Return the host's time for a call in microseconds: the lowest mean of five blocks.
        best_s = float("inf")
        for _ in range(5):
            self._synchronize()
            start_s = perf_counter()
            for _ in range(repeated // 5):
                call()
            best_s = min(best_s, (perf_counter() - start_s) / (repeated // 5))
        return 1e6 * best_s

    def _keep_busy(self, seconds: float) -> None:
        if self.cuda:
            _sleep(int(seconds * BUSY_CYCLES_PER_S))

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def say(fact: str, **found: object) -> None:
    """Print a fact as one line of JSON, with rounded numbers."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}
    print(json.dumps({"fact": fact, **rounded}), flush=True)  # noqa: T201


def _stage_step(
    dim: int, heads: int, depth: int, tokens: int, samples: int, device: torch.device
) -> Callable[[], None]:
    # Return a function that trains transformer blocks and a head for one step, with bf16.
    blocks = nn.Sequential(*[Block(dim, heads, 4 * dim, 0.0, 0.0) for _ in range(depth)]).to(device)
    head = nn.Linear(dim, 10).to(device)
    parameters = [*blocks.parameters(), *head.parameters()]
    capturable = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True, capturable=capturable)
    values = torch.randn(samples, tokens, dim, device=device)
    labels = torch.zeros(samples, dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss: Tensor = F.cross_entropy(head(blocks(values).mean(1)).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _sleep(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def _add_up(connection: Connection, device: str) -> None:
    # Run the second process of `shared_events`: read a number in each turn, and send the sum.
    torch.cuda.set_device(device)
    shared: Tensor = _received(connection)  # type: ignore[assignment]
    filled = _event_of(torch.device(device), _received(connection))
    read = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
    read.record()
    connection.send(bytes(read.ipc_handle()))  # type: ignore[no-untyped-call]
    stream, total = torch.cuda.current_stream(), torch.zeros((), device=device)
    for _ in range(TURNS):
        _received(connection)
        stream.wait_event(filled)
        total += shared[0]
        read.record()
        connection.send(None)
    connection.send(float(total))
    _received(connection)


def _event_of(device: torch.device, handle: object) -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event.from_ipc_handle(device, handle)  # type: ignore[no-untyped-call]
    return event


def _received(connection: Connection) -> object:
    if not connection.poll(LIMIT_S):
        raise TimeoutError(f"no message from the other process for {LIMIT_S:g} s")
    return connection.recv()


if __name__ == "__main__":
    torch.set_num_threads(1)
    multiprocessing.set_start_method("spawn")
    Probe(torch.device("cuda:0" if sys.argv[1:] == ["cuda"] else "cpu")).run()
