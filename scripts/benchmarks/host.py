"""`scripts/benchmark host`: the worker's own time on the host, a stage and batch.

The middle one of three stages, four transformer blocks and a local loss, trains as it does in a
run: `Worker.run` takes batch after batch. Its channels carry nothing: the same input is always
there, and what is sent is dropped. Between blocks of such steps the same calls of torch (forward,
loss, metric, backward, the optimizer's kernel) run in a bare loop on a second copy of the stage.
The difference of the two medians is what the program adds to torch.

The blocks are narrow, so that on CPU the difference is not lost in the time of the arithmetic; the
number of calls and parameters is that of wide ones. On CPU the clock is that of the thread, which
stands still while other programs have the core. On CUDA backward has a thread of its own, so that
the clock is the wall's: both loops queue their work, and wait for the device only between blocks.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter, thread_time
from types import SimpleNamespace
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ppll_cli.job.course import Item, TrainBatch
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Header, Links
from ppll_cli.job.pulse import Pulse
from ppll_cli.pipeline.instructions import End
from ppll_cli.pipeline.rules import Channel
from ppll_cli.prepare.preparation import prepare
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.worker import Worker
from scripts.benchmarks.contenders import compose_settings
from scripts.benchmarks.runs import machine
from scripts.benchmarks.unlinked import NoSender, random_values

RESULT = Path("outputs/benchmark/host.json")
STAGE, STAGES, BATCH_SIZE = 1, 3, 4
CHUNK = STAGE
"""The chunk of the stage: there is one on each."""

BLOCK = 50
"""Steps of a block, which is an epoch."""

OVERRIDES = ["model=vit", "model.dim=16", "model.heads=1", "model.depth=12", "data=synthetic"]
OVERRIDES += ["data.size=8", f"data.train_samples={BLOCK * BATCH_SIZE}", "data.test_samples=1"]
OVERRIDES += [f"batch_size={BATCH_SIZE}", "threads=1", "schedule=ppll", "optim.lr=1e-3"]
OVERRIDES += [
    "partition=manual",
    "partition.cuts=[blocks.4,blocks.8]",
    f"gpus={STAGES}",
    "oversubscribe=true",
]
OPTIMIZERS = {
    "adamw": ["optim=adamw"],
    "sgd": ["optim=sgd"],
    "adamw, clipped": ["optim=adamw", "optim.clip_norm=1"],
}
TARGET_MS = 0.3

Step = Callable[[], None]
Clock = Callable[[], float]


def main(arguments: Sequence[str]) -> None:
    """Measure, write the result and print it."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark host", description=__doc__)
    parser.add_argument("--long", action="store_true", help="60 blocks of each instead of 12")
    parser.add_argument("overrides", nargs="*", help="for example device=cuda")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    blocks = 60 if options.long else 12
    rows = {
        name: measure([*OVERRIDES, *extra, *options.overrides], blocks)
        for name, extra in OPTIMIZERS.items()
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "overrides": options.overrides, "rows": rows}
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    table = Table("", "worker, ms", "torch alone, ms", "the program's own, ms", "target")
    for name, row in rows.items():
        numbers = (f"{row[key]:.3f}" for key in ("worker_ms", "torch_ms", "own_ms"))
        table.add_row(name, *numbers, f"{TARGET_MS}")
    Console().print(table)


def measure(overrides: Sequence[str], blocks: int) -> dict[str, float]:
    """Time a stage's steps in the worker and in a bare loop, in turns.

    Args:
        overrides: The run's configuration.
        blocks: How many blocks of `BLOCK` steps to time of each, after two that warm up.

    Returns:
        Of a step, in milliseconds: the medians `worker_ms` and `torch_ms`, their difference
        `own_ms`, and `worker_mean_ms`, in which the steps that report count as well.
    """
    job = prepare(compose_settings(overrides), run_dir="").job
    job = replace(job, course=replace(job.course, epochs=blocks + 2, eval_every=10**6))
    device = torch.device(job.device(Seat(STAGE, 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    inputs = {
        name: random_values(spec, BATCH_SIZE).to(device) for name, spec in job.specs[CHUNK].items()
    }
    worker_s: list[float] = []
    torch_s: list[float] = []

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    clock = perf_counter if device.type == "cuda" else thread_time
    bare = bare_step(job, device, inputs)

    def between() -> None:
        """Time the bare loop while the worker waits for its next batch."""
        wait()
        torch_s.extend(_timed(bare, BLOCK, clock))
        wait()

    receiver = _TimedReceiver(job, inputs, between, worker_s, clock)
    parent = SimpleNamespace(send=lambda report: None)
    links = Links(
        {Channel(STAGE, STAGE + 1, "activations", CHUNK + 1): NoSender()},
        {Channel(STAGE - 1, STAGE, "activations", CHUNK): receiver},
        cast(Any, parent),
        _NoStop(),
        Pulse(),
    )
    Worker(job, Seat(STAGE, 0), links).run()
    warm = 2 * BLOCK
    worker_ms, torch_ms = (1e3 * median(times[warm:]) for times in (worker_s, torch_s))
    return {
        "own_ms": worker_ms - torch_ms,
        "worker_ms": worker_ms,
        "torch_ms": torch_ms,
        "worker_mean_ms": 1e3 * mean(worker_s[warm:]),
        "steps": len(worker_s) - warm,
    }


def bare_step(job: Job, device: torch.device, inputs: Mapping[str, Tensor]) -> Step:
    """A training step of the stage as one would write it by hand, on networks of its own."""
    chunk = HeldChunk(job, CHUNK, job.site(job.units()), device)
    assert chunk.criterion is not None
    criterion, optim = chunk.criterion, job.settings.optim
    networks = [network for _, network in chunk.units]
    name = chunk.units[0][0].reads[0]
    parameters = [p for network in (*networks, criterion) for p in network.parameters()]
    state = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    count = torch.zeros(len(parameters), device=device)
    counts = list(count.unbind())
    stepped: list[Tensor] = [*parameters]

    def update() -> None:
        gradients = [cast(Tensor, p.grad) for p in parameters]
        if optim.clip_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, norm)
        if optim.name == "adamw":
            count.add_(1)
            b1, b2 = optim.betas
            torch._fused_adamw_(
                stepped,
                gradients,
                state[0],
                state[1],
                [],
                counts,
                lr=optim.lr,
                beta1=b1,
                beta2=b2,
                eps=1e-8,
                weight_decay=optim.weight_decay,
                amsgrad=False,
                maximize=False,
            )
        else:
            torch._fused_sgd_(
                stepped,
                gradients,
                state[0],
                lr=optim.lr,
                momentum=optim.momentum,
                nesterov=optim.nesterov,
                weight_decay=optim.weight_decay,
                dampening=0.0,
                maximize=False,
                is_first_step=False,
            )

    def step() -> None:
        x = inputs[name]
        for network in networks:
            x = network(x)
        features = x.detach().requires_grad_()
        loss, prediction = criterion({**inputs, criterion.features[0]: features})
        with torch.no_grad():
            job.task.measure(prediction, inputs, training=True)
        loss.backward()
        torch.autograd.backward([x], [features.grad])
        with torch.no_grad():
            update()
        for parameter in parameters:
            parameter.grad = None

    return step


class _TimedReceiver:
    """The consumer's end of a channel: the same batch again and again, and when each is asked for.

    Args:
        job: Whose training batches come, and then the end.
        inputs: What a batch brings.
        between: Called before each block of steps.
        times: Gets the seconds of each step.
        clock: By which to time.
    """

    def __init__(
        self,
        job: Job,
        inputs: Mapping[str, Tensor],
        between: Step,
        times: list[float],
        clock: Clock,
    ) -> None:
        self._items, self._inputs = _items(job), inputs
        self._between, self._times, self._clock = between, times, clock
        self._header: Header | None = None
        self._since: float | None = None

    def open(self) -> None:
        """Nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Where a batch is done: note its time, and decide what comes next."""
        if self._header is None:
            if self._since is not None:
                self._times.append(self._clock() - self._since)
            item = next(self._items)
            if isinstance(item, TrainBatch) and item.batch == 0:
                self._between()
            self._header = Header(item, chunk=CHUNK)
            self._since = self._clock() if isinstance(item, TrainBatch) else None
        return True

    def peek(self) -> Header:
        """The header of the next message."""
        assert self._header is not None
        return self._header

    def receive(self) -> tuple[Header, dict[str, Tensor]]:
        """The next message; the mark at the end brings no tensors."""
        header, self._header = self.peek(), None
        return header, dict(self._inputs) if isinstance(header.item, TrainBatch) else {}

    def release(self) -> None:
        """Nothing."""


class _NoStop:
    value = 0


def _items(job: Job) -> Iterator[Item]:
    """The training batches, without what stands between them in a run."""
    steps = job.course.steps
    each = job.course.steps_per_epoch
    yield from (TrainBatch(step, *divmod(step, each), BATCH_SIZE) for step in range(steps))
    yield End(steps)


def _timed(step: Step, steps: int, clock: Clock) -> list[float]:
    times = [clock()]
    for _ in range(steps):
        step()
        times.append(clock())
    return [last - first for first, last in pairwise(times)]
