"""The same units, trained by what torch itself offers: its pipeline schedules, and DDP.

A trainer is one rank's. Its networks and its optimizer are those that a `HeldChunk` makes for our
own workers, and its batches come from the same `BatchMaker`.

Legend: B batch, C channels, H height, W width.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle
from torch.nn.parallel import DistributedDataParallel

from ppll_cli.config.targets import make
from ppll_cli.data.source import BatchMaker, Dataset
from ppll_cli.job.job import Job
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import IMAGE, Unit
from ppll_cli.tasks.classification import LABEL
from ppll_cli.worker.chunk import HeldChunk

FLOAT = torch.float32


class Trainer(Protocol):
    """One rank of a training."""

    def prepare(self, steps: range) -> None:
        """Get ready to train these steps; this is not timed."""
        ...

    def step(self, step: int) -> Tensor | None:
        """Train one step; its loss, detached, where this rank knows it."""
        ...


class UnitsModule(nn.Module):
    """A run of units as one module.

    Args:
        units: The units and their networks, in order.
        reads: Names of what it takes.
        writes: Names of what it returns, as a tuple where they are several.
    """

    def __init__(
        self, units: Sequence[tuple[Unit, nn.Module]], reads: Sequence[str], writes: Sequence[str]
    ) -> None:
        super().__init__()
        self._units, self._reads, self._writes = [unit for unit, _ in units], reads, writes
        self.networks = nn.ModuleList(network for _, network in units)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the units make of the inputs."""
        values = dict(zip(self._reads, inputs, strict=True))
        for unit, network in zip(self._units, self.networks, strict=True):
            made = network(*(values[name] for name in unit.reads))
            written = made if isinstance(made, tuple) else (made,)
            values.update(zip(unit.writes, written, strict=True))
        outputs = tuple(values[name] for name in self._writes)
        return outputs if len(outputs) > 1 else outputs[0]


class BetweenRanks(nn.Module):
    """A module whose inputs or outputs travel between ranks.

    What torch sends must be contiguous. Maps [B, C, H, W] travel as [B, H, W, C]: so they are where
    convolutions keep channels last, and nothing is copied.

    Args:
        module: The module.
        receives: Whether its inputs come from another rank.
        sends: Whether its outputs go to another rank.
    """

    def __init__(self, module: nn.Module, receives: bool, sends: bool) -> None:
        super().__init__()
        self.module, self._receives, self._sends = module, receives, sends

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the module makes of the inputs."""
        if self._receives:
            inputs = tuple(x.permute(0, 3, 1, 2) if x.dim() == 4 else x for x in inputs)
        outputs: Tensor | tuple[Tensor, ...] = self.module(*inputs)
        if not self._sends:
            return outputs
        made = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple((y.permute(0, 2, 3, 1) if y.dim() == 4 else y).contiguous() for y in made)


class PipelineTrainer:
    """A rank of one of torch's schedules, with the chunks that the job has on that stage.

    The first rank loads its batch within the step, as ours does; the rank with the loss needs only
    labels, and has them before. Shapes are given: torch would infer them from one more batch, which
    BatchNorm would see.

    Args:
        job: Our own run with such a schedule.
        rank: Number of the stage.
    """

    schedule: ClassVar[type[PipelineScheduleSingle | PipelineScheduleMulti]]

    def __init__(self, job: Job, rank: int) -> None:
        self._job, total = job, len(job.layout.chunks)
        numbers = job.layout.of(rank)
        self._first, self._last = 0 in numbers, total - 1 in numbers
        device = torch.device(job.devices[rank])
        site = job.site(job.units())
        self._optimizers, stages = [], []
        for number in numbers:
            chunk = HeldChunk(job, number, site, device)
            assert chunk.optimizer is not None
            self._optimizers.append(chunk.optimizer)
            (reads, inputs), (writes, outputs) = _crossing(job, number), _crossing(job, number + 1)
            module = BetweenRanks(
                UnitsModule(chunk.units, reads, writes),
                receives=number > 0,
                sends=number < total - 1,
            )
            stage = PipelineStage(
                module, number, total, device, input_args=inputs, output_args=outputs
            )
            stages.append(stage)
        held: Any = stages if issubclass(self.schedule, PipelineScheduleMulti) else stages[0]
        self._schedule = self.schedule(held, job.make_schedule().microbatches, loss_fn=self._loss)
        self._batches = _batches(job, device, job.course.batch_size)
        self._labels: deque[Tensor] = deque()

    def prepare(self, steps: range) -> None:
        """The rank with the loss gets its labels."""
        if self._last:
            self._labels.extend(_batch(self._batches, step)[LABEL] for step in steps)

    def step(self, step: int) -> Tensor | None:
        """All micro-batches, and the optimizer's step."""
        images = (_batch(self._batches, step)[IMAGE],) if self._first else ()
        labels = self._labels.popleft() if self._last else None
        losses: list[Tensor] | None = [] if self._last else None
        self._schedule.step(*images, target=labels, losses=losses, return_outputs=False)
        for optimizer in self._optimizers:
            optimizer.step(self._job.settings.optim.lr)
            optimizer.zero_grad()
        return torch.stack(losses).detach().mean() if losses else None

    def _loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return self._job.task.loss(prediction, {LABEL: labels})


class GPipeTrainer(PipelineTrainer):
    """torch's GPipe."""

    schedule = ScheduleGPipe


class OneFOneBTrainer(PipelineTrainer):
    """torch's 1F1B."""

    schedule = Schedule1F1B


class InterleavedTrainer(PipelineTrainer):
    """torch's interleaved 1F1B."""

    schedule = ScheduleInterleaved1F1B


class ZeroBubbleTrainer(PipelineTrainer):
    """torch's interleaved zero bubble, which has ZB-H1's order of the halves."""

    schedule = ScheduleInterleavedZeroBubble


class DataParallelTrainer:
    """A rank of `DistributedDataParallel`, with its defaults: the whole model on a part of a batch.

    Args:
        job: A run on one stage, with a device for each rank.
        rank: Number of the rank.
    """

    def __init__(self, job: Job, rank: int) -> None:
        self._job, self._rank, self._ranks = job, rank, len(job.devices)
        device = torch.device(job.devices[rank])
        chunk = HeldChunk(job, 0, job.site(job.units()), device)
        assert chunk.optimizer is not None
        self._optimizer = chunk.optimizer
        (reads, _), (writes, _) = _crossing(job, 0), _crossing(job, 1)
        self._model = DistributedDataParallel(UnitsModule(chunk.units, reads, writes))
        self._batches = _batches(job, device, job.course.batch_size // self._ranks)

    def prepare(self, steps: range) -> None:
        """Nothing."""

    def step(self, step: int) -> Tensor:
        """Forward and backward of the rank's part, and the optimizer's step."""
        batch = _batch(self._batches, step * self._ranks + self._rank)
        loss = self._job.task.loss(self._model(batch[IMAGE]), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(self._job.settings.optim.lr)
        self._optimizer.zero_grad()
        return loss.detach()


def _crossing(job: Job, cut: int) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """What crosses the cut before the chunk of this number: names, and examples.

    Targets are left out: torch's schedules have them where the loss is.
    """
    if cut == 0:
        specs = {IMAGE: ValueSpec((job.image.channels, job.image.height, job.image.width), FLOAT)}
    elif cut == len(job.layout.chunks):
        specs = {job.units()[-1].writes[0]: job.features[-1]}
    else:
        specs = dict(job.specs[cut])
    specs = {name: spec for name, spec in specs.items() if name not in job.task.targets}
    travels = 0 < cut < len(job.layout.chunks)
    return tuple(specs), tuple(_example(job, spec, travels) for spec in specs.values())


def _example(job: Job, spec: ValueSpec, travels: bool) -> Tensor:
    """What a micro-batch of the tensor looks like."""
    shape = spec.shape
    if travels and len(shape) == 3:
        shape = (*shape[1:], shape[0])
    samples = job.microbatch_size
    # A gradient travels back for what needs one.
    return torch.empty((samples, *shape), dtype=spec.dtype, device="meta", requires_grad=travels)


def _batches(job: Job, device: torch.device, size: int) -> BatchMaker:
    dataset: Dataset = make("data", job.settings.data)
    return dataset.batches(dataset.load(), size, job.settings.seed, device)


def _batch(batches: BatchMaker, number: int) -> dict[str, Tensor]:
    """Training batch of this number, counted over all epochs."""
    return batches.train(*divmod(number, batches.steps_per_epoch))
