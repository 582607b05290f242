"""Computes a chunk (units that one stage holds): forward, loss, backward and step.

`forward` computes the outputs of the chunk. The gradients of the outputs come from the next chunk
or, at the end of a module, from the chunk's own `loss`. `backward` continues from these gradients,
and `step` updates the weights. The inputs of a chunk are detached, so autograd stops at them.
"""

from collections.abc import Callable, Container
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.job.course import Batch
from ppll_cli.job.job import Job
from ppll_cli.job.learning_rate import learning_rate
from ppll_cli.job.optimizer import clip, squared_norm
from ppll_cli.job.recompute import recomputed
from ppll_cli.leaves.random_states import generators_of, seed_each
from ppll_cli.local.method import Site
from ppll_cli.tasks.task import measured
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.networks import Networks
from ppll_cli.worker.sums import Sums
from ppll_cli.worker.tensors import Tensors
from ppll_cli.worker.views import as_received, copy_gradients, storages, unchanged, without_aliases


class HeldChunk(Networks):
    """A chunk that a worker trains: its networks, and the tensors of the current batch.

    `number` is the index of the chunk in the model. `Networks` describes the other arguments.

    Attributes:
        is_last: Whether the chunk belongs to the last module, which has the model's own head.
        sums: Losses and metrics that are not reported yet, by a key such as "test" (see
            `split_of`).
    """

    def __init__(
        self,
        job: Job,
        number: int,
        site: Site,
        device: torch.device,
        replicas: Replicas | None = None,
    ) -> None:
        super().__init__(job, job.layout.chunks[number], site, device, replicas)
        self.tensors = Tensors(job.routes, number)
        self.batch = Batch([])
        self.is_last = site.at(self.place.module).is_last
        self.sums: dict[str, Sums] = {}
        self._sends_gradients = not job.make_schedule().local
        self._generators = generators_of(device)

    def begin(self, batch: Batch) -> None:
        """Prepare the networks for a batch: set their mode, and use averaged or plain weights."""
        if batch.training != self.tensors.training:
            for network in self.networks:
                network.train(batch.training)
        self.use_averages(batch.averaged)
        self.tensors.training, self.batch = batch.training, batch

    def forward(self, micro_batch: int) -> None:
        """Run the units on a micro-batch. Then run the exports without gradients."""
        values, batch, root = self.tensors[micro_batch].values, self.batch, self.job.settings.seed
        index = batch.first_micro_batch + micro_batch

        def state() -> list[Tensor]:
            return self.unit_state if batch.training else []

        changing = self.tensors.changing(micro_batch, state)
        with self.autocast(), torch.set_grad_enabled(batch.training):
            for unit, network in self.units:
                number = seeding.unit_forward(root, unit.name, batch.step, index)
                seed = partial(seed_each, self._generators, number)
                run: Callable[..., Any] = network
                if batch.training and self.job.settings.recompute:
                    run = partial(recomputed, network, seed)
                else:
                    seed()
                made = without_aliases(unit.written(run(*unit.inputs(values))), values.values())
                values.update({n: as_received(t, self._sends_gradients) for n, t in made.items()})
        with self.autocast(), torch.no_grad():
            for unit, network in self.exports:
                made = unit.written(network(*unit.inputs(values)))
                values.update({name: as_received(t.detach(), False) for name, t in made.items()})
        self.tensors.hold_outputs(micro_batch, changing)

    def loss(self, micro_batch: int) -> None:
        """Compute the module's loss and its gradients with respect to the chunk's outputs.

        Add the loss and the task's measurements to `sums`.

        Raises:
            RuntimeError: The loss requires no gradients, although some parameters do; or the loss
                changes a tensor in place.
        """
        assert self.criterion is not None
        values, batch, module = self.tensors[micro_batch].values, self.batch, self.place.module
        index = batch.first_micro_batch + micro_batch
        number = seeding.auxiliary_forward(self.job.settings.seed, module, batch.step, index)
        made = {name: values[name] for unit, _ in self.units for name in unit.writes}
        # Detached, so that the backward of the loss ends at these outputs. So this backward can be
        # timed separately, and frees the graph of the loss before the backward of the units begins.
        outputs = {n: t.detach().requires_grad_() for n, t in made.items() if t.requires_grad}
        values = {**values, **outputs}
        with self.autocast():
            seed_each(self._generators, number)
            with unchanged(values, f"the loss of module {module}"):
                loss, prediction = self.criterion(values)
            with torch.no_grad():
                measures = measured(self.job.task, prediction, values, training=True)
        self.sums.setdefault("train", Sums()).add(loss, batch.sizes[micro_batch], measures)
        self.nonfinite.check(loss)
        share = batch.share(micro_batch)
        if self.is_trained_by(loss):
            (loss if share == 1 else loss * share).backward()
        gradients = {n: t.grad for n, t in outputs.items() if t.grad is not None}
        self.tell_if_untrained(outputs, gradients)
        self.tensors.store_gradients(micro_batch, gradients)

    def backward(self, micro_batch: int) -> None:
        """Compute the gradients of parameters and inputs from the gradients of the outputs."""
        outputs, gradients = self.tensors.take_roots(micro_batch)
        if outputs:
            torch.autograd.backward(outputs, gradients)
            self.copy_received_gradients(micro_batch, storages(gradients))
        self.complete_average()

    def copy_received_gradients(self, micro_batch: int, received: Container[int]) -> None:
        """Copy gradients that lie in a slot, because a later message overwrites the slot.

        These are gradients (`.grad`) of inputs and weights. `received` has the addresses of
        received gradients (see `storages`).
        """
        # Autograd may use a received gradient as `.grad` without copying it, for example for a
        # position embedding that is added to a batch of one sample.
        if not self.place.ends_module:  # else the gradients come from the chunk's own loss
            leaves = self.tensors[micro_batch].leaves.values()
            copy_gradients([*leaves, *self.unit_weights], received)

    def step(self, step: int, total: Tensor | None) -> None:
        """Do one optimizer step, with the gradients clipped if `optim.clip_norm` is set.

        With `optim.nonfinite=skip`, a step is skipped if the gradient norm is not finite.

        Args:
            step: Number of optimizer steps done before this one.
            total: Squared norm of the model's gradient, a scalar. If None, the norm of the chunk's
                gradient is used.

        Raises:
            NonFiniteError: On CPU, a loss is not finite, and `optim.nonfinite` is `stop`.
        """
        optim, course, optimizer = self.job.settings.optim, self.job.course, self.optimizer
        self.nonfinite.raise_if_found(step, self.parameters)
        if total is None and optimizer is not None and self.job.needs_norm:
            total = squared_norm(optimizer.parameters)
        self.squared_norm = total
        if optimizer is not None:
            skip = self.nonfinite.skip_flag(step, total)
            for versions in self.versions.values():
                versions.before_step()
            if total is not None and optim.clip_norm is not None:
                clip(optimizer.parameters, optim.clip_norm, total)
            optimizer.step(learning_rate(optim, step, course.steps_per_epoch, course.epochs), skip)
            optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(step)

    def end(self) -> None:
        """Free all tensors of the batch."""
        self.tensors.clear()
