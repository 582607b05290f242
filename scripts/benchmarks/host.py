"""`scripts/benchmark host`: time that the program adds to torch, per stage and batch.

`Worker.run` trains the middle stage of three: four transformer blocks and a local loss. Nothing is
sent: the same input is always available, and outputs are dropped. The worker takes turns with a
bare loop, which makes the same calls of torch on a second copy of the stage; a turn has `BLOCK`
steps. The result is the difference of the two median step times.

The transformer blocks are narrow, so that arithmetic takes little time. On CPU the CPU time of the
thread is measured, which excludes the time of other programs. On CUDA the backward pass runs in
another thread, so wall-clock time is measured. Both loops then queue their work, and wait for the
device only every `BLOCK` steps.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
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

from ppll_cli.config.sections import Optim
from ppll_cli.job.course import Item, TrainBatch
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Links
from ppll_cli.job.pulse import Pulse
from ppll_cli.pipeline.instructions import End
from ppll_cli.pipeline.rules import Channel
from ppll_cli.prepare.preparation import prepare
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.worker import Worker
from scripts.benchmarks.contenders import compose_settings
from scripts.benchmarks.runs import machine, save
from scripts.benchmarks.unlinked import Endless, NoSender, random_values

RESULT = Path("outputs/benchmark/host.json")
STAGE, STAGES, BATCH_SIZE = 1, 3, 4
CHUNK = STAGE

BLOCK = 50
"""Number of steps in a turn of the worker or of the bare loop, and in an epoch."""

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
    """Measure all optimizers, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark host", description=__doc__)
    parser.add_argument("--long", action="store_true", help="time 60 blocks of steps, not 12")
    parser.add_argument("overrides", nargs="*", help="for example device=cuda")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    blocks = 60 if options.long else 12
    rows = {
        name: measure([*OVERRIDES, *extra, *options.overrides], blocks)
        for name, extra in OPTIMIZERS.items()
    }
    found = {"machine": machine(), "overrides": options.overrides, "rows": rows}
    save(found, RESULT)
    table = Table("", "worker, ms", "torch alone, ms", "the program's own, ms", "target")
    for name, row in rows.items():
        numbers = (f"{row[key]:.3f}" for key in ("worker_ms", "torch_ms", "own_ms"))
        table.add_row(name, *numbers, f"{TARGET_MS}")
    Console().print(table)


def measure(overrides: Sequence[str], blocks: int) -> dict[str, float]:
    """Time the steps of a stage in the worker and in a bare loop, in turn.

    Each of them makes two blocks of `BLOCK` steps that are not timed, then `blocks` timed ones.

    Returns:
        Times per step in milliseconds: the medians `worker_ms` and `torch_ms`, their difference
            `own_ms`, and the mean `worker_mean_ms`, which includes the slower steps that send
            reports; and `steps`, the number of timed steps of the worker.
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
        wait()
        torch_s.extend(_timed(bare, BLOCK, clock))
        wait()

    receiver = _TimedReceiver(job, device, between, worker_s, clock)
    parent = SimpleNamespace(send=lambda report: None)
    links = Links(
        {Channel(STAGE, STAGE + 1, "activations", CHUNK + 1): NoSender()},
        {Channel(STAGE - 1, STAGE, "activations", CHUNK): receiver},
        parent=cast(Any, parent),
        stop=_NoStop(),
        pulse=Pulse(),
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
    """Return a function that makes a training step of the stage, with networks of its own."""
    chunk = HeldChunk(job, CHUNK, job.site(job.units()), device)
    assert chunk.criterion is not None
    criterion, optim = chunk.criterion, job.settings.optim
    networks = [network for _, network in chunk.units]
    name = chunk.units[0][0].reads[0]
    parameters = [p for network in (*networks, criterion) for p in network.parameters()]
    update = _update(optim, parameters, device)

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


def _update(optim: Optim, parameters: Sequence[Tensor], device: torch.device) -> Step:
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

    return update


class _TimedReceiver(Endless):
    # A channel's receiving end that always provides the same batch, and times the worker's steps.
    # It appends the seconds of each step to `times`, and calls `between` before each epoch.

    def __init__(
        self, job: Job, device: torch.device, between: Step, times: list[float], clock: Clock
    ) -> None:
        super().__init__(job.course, job.specs[CHUNK], CHUNK, str(device), slots=1)
        self._between, self._times, self._clock = between, times, clock
        self._since: float | None = None

    def wait(self, timeout_s: float) -> bool:
        # Record the time of a finished step, choose the next message, and return True.
        if self._header is None:
            if self._since is not None:
                self._times.append(self._clock() - self._since)
            super().wait(timeout_s)
            item = self.peek().item
            if isinstance(item, TrainBatch) and item.batch == 0:
                self._between()
            self._since = self._clock() if isinstance(item, TrainBatch) else None
        return True

    @cached_property
    def _items(self) -> Iterator[Item]:
        steps, each = self._course.steps, self._course.steps_per_epoch
        yield from (TrainBatch(step, *divmod(step, each), BATCH_SIZE) for step in range(steps))
        yield End(steps)


class _NoStop:
    value = 0


def _timed(step: Step, steps: int, clock: Clock) -> list[float]:
    times = [clock()]
    for _ in range(steps):
        step()
        times.append(clock())
    return [last - first for first, last in pairwise(times)]
