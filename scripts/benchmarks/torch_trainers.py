"""Trains the units of a job with torch's own pipeline schedules and with DDP.

Networks, optimizers and batches come from `HeldChunk` and `BatchMaker`, as in this program's
workers.

Legend: B batch, C channels, H height, W width.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle
from torch.nn.parallel import DistributedDataParallel

from ppll_cli.config.targets import make
from ppll_cli.data.source import BatchMaker, Dataset
from ppll_cli.job.job import Job
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import IMAGE, Unit
from ppll_cli.tasks.classification import LABEL
from ppll_cli.worker.chunk import HeldChunk


class UnitsModule(nn.Module):
    """Successive units as one module.

    It takes the tensors that `reads` names, and returns those that `writes` names, as a tuple if
    there are several.
    """

    def __init__(
        self, units: Sequence[tuple[Unit, nn.Module]], reads: Sequence[str], writes: Sequence[str]
    ) -> None:
        super().__init__()
        self._units, self._reads, self._writes = [unit for unit, _ in units], reads, writes
        self.networks = nn.ModuleList(network for _, network in units)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs of the units."""
        values = dict(zip(self._reads, inputs, strict=True))
        for unit, network in zip(self._units, self.networks, strict=True):
            made = network(*(values[name] for name in unit.reads))
            written = made if isinstance(made, tuple) else (made,)
            values.update(zip(unit.writes, written, strict=True))
        outputs = tuple(values[name] for name in self._writes)
        return outputs if len(outputs) > 1 else outputs[0]


class BetweenRanks(nn.Module):
    """A module that receives its inputs from another rank, or sends its outputs to another rank.

    torch can send only contiguous tensors. Maps [B, C, H, W] are sent as [B, H, W, C], which is
    their order in memory where convolutions keep channels last, so no copy is needed.
    """

    def __init__(self, module: nn.Module, receives: bool, sends: bool) -> None:
        super().__init__()
        self.module, self._receives, self._sends = module, receives, sends

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs of the module."""
        if self._receives:
            inputs = tuple(x.permute(0, 3, 1, 2) if x.dim() == 4 else x for x in inputs)
        outputs: Tensor | tuple[Tensor, ...] = self.module(*inputs)
        if not self._sends:
            return outputs
        made = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple((y.permute(0, 2, 3, 1) if y.dim() == 4 else y).contiguous() for y in made)


class PipelineTrainer:
    """Trains a rank with one of torch's schedules, on the chunks of the job's stage.

    The first rank loads its batch within the step, as this program's workers do. The rank with the
    loss loads its labels before the timed steps. Shapes are given, because torch would find them by
    running another batch, which would change BatchNorm's statistics.
    """

    def __init__(
        self, schedule: type[PipelineScheduleSingle | PipelineScheduleMulti], job: Job, rank: int
    ) -> None:
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
        held: Any = stages if issubclass(schedule, PipelineScheduleMulti) else stages[0]
        self._schedule = schedule(held, job.make_schedule().microbatches, loss_fn=self._loss)
        self._batches = _batches(job, device, job.course.batch_size)
        self._labels: deque[Tensor] = deque()

    def prepare(self, steps: range) -> None:
        """Load the labels of the steps if this rank has the loss."""
        if self._last:
            self._labels.extend(_batch(self._batches, step)[LABEL] for step in steps)

    def step(self, step: int) -> Tensor | None:
        """Train all micro-batches of a batch, and step the optimizers.

        Return the mean loss, a scalar; None on ranks without the loss.
        """
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


class DataParallelTrainer:
    """Trains the whole model on a rank's part of each batch, with `DistributedDataParallel`.

    The job has one stage, and a device for each rank.
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
        """Do nothing."""

    def step(self, step: int) -> Tensor:
        """Train the rank's part of a batch, step the optimizer, and return the loss, a scalar."""
        batch = _batch(self._batches, step * self._ranks + self._rank)
        loss = self._job.task.loss(self._model(batch[IMAGE]), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(self._job.settings.optim.lr)
        self._optimizer.zero_grad()
        return loss.detach()


Trainer = PipelineTrainer | DataParallelTrainer
"""Trains one rank of a job. `step` returns the loss; None if another rank computes it."""


def _crossing(job: Job, cut: int) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    # Return names and examples of the tensors that cross the cut before chunk number `cut`. Targets
    # are left out, because torch's schedules pass them to the rank with the loss.
    if cut == 0:
        specs = dict(job.input_spec.specs)
    elif cut == len(job.layout.chunks):
        specs = {job.units()[-1].writes[0]: job.features[-1]}
    else:
        specs = dict(job.specs[cut])
    specs = {name: spec for name, spec in specs.items() if name not in job.task.targets}
    travels = 0 < cut < len(job.layout.chunks)
    return tuple(specs), tuple(_example(job, spec, travels) for spec in specs.values())


def _example(job: Job, spec: ValueSpec, travels: bool) -> Tensor:
    shape = spec.shape
    if travels and len(shape) == 3:
        shape = (*shape[1:], shape[0])
    samples = job.microbatch_size
    # torch sends gradients back for tensors that require gradients.
    return torch.empty((samples, *shape), dtype=spec.dtype, device="meta", requires_grad=travels)


def _batches(job: Job, device: torch.device, size: int) -> BatchMaker:
    dataset: Dataset = make("data", job.settings.data)
    return dataset.batches(dataset.load(), size, job.settings.seed, device)


def _batch(batches: BatchMaker, number: int) -> dict[str, Tensor]:
    return batches.train(*divmod(number, batches.steps_per_epoch))
