"""Computes a chunk (units that one stage holds): forward, loss, backward and measurements.

All chunks are trained in the same way. `forward` computes the outputs of the chunk. The gradients
of the outputs come from the next chunk, or from the chunk's own `loss` if a module ends with this
chunk. `backward` continues from these gradients, and `step` updates the weights. The inputs of a
chunk are detached, so autograd stops at them.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.job.course import Batch
from ppll_cli.job.halves import WeightHalf, backward_to_inputs
from ppll_cli.job.job import Job
from ppll_cli.job.recompute import recomputed
from ppll_cli.local.method import Site
from ppll_cli.models.unit import Unit
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.generators import Generators
from ppll_cli.worker.networks import Networks
from ppll_cli.worker.sums import Sums
from ppll_cli.worker.views import apart, storages


class HeldChunk(Networks):
    """A chunk on a worker, with the tensors of the current batch, by micro-batch and name.

    Args:
        number: Number of the chunk in the model, from 0. For the other arguments see `Networks`.

    Attributes:
        sums: Losses and metrics that are not reported yet, by split ("train" in training). For the
            additional predictions of a criterion the key is the result of `split_of`.

    See `Networks` for the networks, the average over replicas and the optimizer step.
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
        self._into, self._out = job.routes.into[number], job.routes.out_of(number)
        chunks = job.layout.chunks
        after = chunks[number + 1].stage if number + 1 < len(chunks) else None
        self._next_is_here = after == self.place.stage
        self.sums: dict[str, Sums] = {}
        self._batch = Batch([])
        self._training: bool | None = None
        self._averaged = False
        self._is_last = site.at(self.place.module).is_last
        self._values: dict[int, dict[str, Tensor]] = {}
        self._leaves: dict[int, dict[str, Tensor]] = {}
        self._outputs: dict[int, dict[str, Tensor]] = {}
        self._gradients: dict[int, dict[str, Tensor]] = {}
        self._weight_halves: dict[int, WeightHalf] = {}
        self._generators = Generators(device)

    def begin(self, batch: Batch) -> None:
        """Prepare for a batch: set the networks' mode, and choose averaged or plain weights."""
        if batch.training != self._training:
            for network in self.networks:
                network.train(batch.training)
        self.use_averages(batch.averaged)
        self._batch, self._training = batch, batch.training

    def use_averages(self, averaged: bool) -> None:
        """From now on compute with the averages of the weights, or with the weights themselves."""
        if self.ema is not None and averaged != self._averaged:
            self.ema.swap()
            self._averaged = averaged

    def take_inputs(self, micro_batch: int, tensors: Mapping[str, Tensor]) -> None:
        """Store a micro-batch's inputs by name; inputs that need gradients become leaves."""
        values = dict(tensors)
        if self._training and self._into.gradients:
            names = self._into.gradients
            leaves = {name: tensors[name].detach().requires_grad_() for name in names}
            values.update(leaves)
            self._leaves[micro_batch] = leaves
        self._values[micro_batch] = values

    def forward(self, micro_batch: int) -> None:
        """Run the units of the chunk on a micro-batch.

        Then run the exports, without gradients: they compute values for losses of later modules.
        """
        values, training = self._values[micro_batch], self._batch.training
        slots = storages(values.values()) if self._next_is_here else set()
        with self._autocast(), torch.set_grad_enabled(training):
            for unit, network in self.units:
                run: Callable[..., Any] = network
                if training:
                    seed = partial(self._reseed, seeding.unit_forward, unit.name, micro_batch)
                    if self.job.settings.recompute:
                        run = partial(recomputed, network, seed)
                    else:
                        seed()
                _apply(unit, run, values)
        with self._autocast(), torch.no_grad():
            for unit, network in self.exports:
                _apply(unit, network, values)
                values.update({name: values[name].detach() for name in unit.writes})
        if self._out.names:
            self._outputs[micro_batch] = self._handed_on(values, slots)

    def _handed_on(self, values: Mapping[str, Tensor], slots: set[int]) -> dict[str, Tensor]:
        """Return the detached outputs of the chunk by name.

        If the next chunk is on this stage, an output that is a view of an input is copied: the
        channel may reuse the input's slot before the next chunk reads the view.
        """
        outputs = {name: values[name].detach() for name in self._out.names}
        if not slots:
            return outputs
        made = {name for unit, _ in self.units for name in unit.writes} & outputs.keys()
        return outputs | apart({name: outputs[name] for name in made}, slots)

    def take_outputs(self, micro_batch: int) -> dict[str, Tensor]:
        """Remove the detached outputs for the next chunk from this chunk, and return them."""
        return self._outputs.pop(micro_batch)

    def loss(self, micro_batch: int) -> None:
        """Compute the loss and its gradients with respect to the chunk's outputs.

        The criterion gets detached outputs. Thus the times of the auxiliary network and of the
        chunk's units can be measured separately, and the auxiliary network's graph is freed before
        the backward of the units begins.
        """
        assert self.criterion is not None
        values, share = self._values[micro_batch], self._batch.share(micro_batch)
        made = {name: values[name] for unit, _ in self.units for name in unit.writes}
        outputs = {n: t.detach().requires_grad_() for n, t in made.items() if t.requires_grad}
        values = {**values, **outputs}
        with self._autocast():
            self._reseed(seeding.auxiliary_forward, self.place.module, micro_batch)
            loss, prediction = self.criterion(values)
            with torch.no_grad():
                measures = self.job.task.measure(prediction, values, training=True)
        self._add("train", loss, micro_batch, measures)
        self.nonfinite.check(loss)
        if loss.requires_grad:  # otherwise no parameter of this chunk is trained
            (loss if share == 1 else loss * share).backward()
        self.take_gradients(
            micro_batch, {n: t.grad for n, t in outputs.items() if t.grad is not None}
        )

    def take_gradients(self, micro_batch: int, gradients: Mapping[str, Tensor]) -> None:
        """Store the gradients of the chunk's outputs, by name."""
        self._gradients[micro_batch] = dict(gradients)

    def backward(self, micro_batch: int) -> None:
        """Compute the gradients of parameters and inputs from the gradients of outputs."""
        outputs, gradients = self._take_roots(micro_batch)
        if outputs:
            torch.autograd.backward(outputs, gradients)
            self._own_input_gradients(micro_batch, gradients)
        self.complete_average()

    def backward_input(self, micro_batch: int) -> None:
        """Compute only the gradients of the inputs, from the gradients of the outputs."""
        outputs, gradients = self._take_roots(micro_batch)
        if outputs:
            leaves = list(self._leaves[micro_batch].values())
            half = backward_to_inputs(outputs, gradients, leaves, self._weights)
            self._weight_halves[micro_batch] = half
            self._own_input_gradients(micro_batch, gradients)

    def backward_weight(self, micro_batch: int) -> None:
        """Compute the gradients of the parameters from what `backward_input` has kept."""
        if (half := self._weight_halves.pop(micro_batch, None)) is not None:
            half.run()
        self.complete_average()

    def take_input_gradients(self, micro_batch: int) -> dict[str, Tensor]:
        """Return the inputs' gradients (zeros for unused inputs), and forget them."""
        leaves = self._leaves.pop(micro_batch)
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for name, leaf in leaves.items()
        }

    def _take_roots(self, micro_batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors at which a backward starts, and their gradients.

        The tensors are the chunk's outputs, including inputs that it passes on unchanged. The chunk
        forgets the micro-batch's values, so that the backward can free them.
        """
        values = self._values.pop(micro_batch)
        gradients = self._gradients.pop(micro_batch, {})
        names = [name for name in gradients if values[name].requires_grad]
        return [values[name] for name in names], [gradients[name] for name in names]

    def _own_input_gradients(self, micro_batch: int, received: list[Tensor]) -> None:
        """Copy each input's gradient that is a view of a received gradient."""
        leaves = self._leaves.get(micro_batch, {})
        found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        for name, gradient in apart(found, storages(received)).items():
            leaves[name].grad = gradient

    def measure(self, micro_batch: int, split: str) -> None:
        """Compute and add the loss and metrics of an evaluation micro-batch, and free its tensors.

        Only a chunk at the end of a module has a loss. Auxiliary networks have no averaged weights,
        so with averaged weights only the last module, which has the model's own head, is measured.
        """
        values = self._values.pop(micro_batch)
        if self.criterion is None or (self._averaged and not self._is_last):
            return
        with self._autocast(), torch.no_grad():
            loss, prediction = self.criterion(values)
            predictions = {"": prediction, **self.criterion.predict_further(values)}
            for name, found in predictions.items():
                measures = self.job.task.measure(found, values, training=False)
                self._add(split_of(split, name), loss, micro_batch, measures)

    def end(self) -> None:
        """Free all tensors of the batch."""
        for kept in (self._values, self._leaves, self._outputs, self._gradients):
            kept.clear()
        self._weight_halves.clear()

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of each tensor of the batch, by name, for a report of a failure."""
        kept = self._values.values()
        return {name: list(t.shape) for values in kept for name, t in values.items()}

    def _add(self, split: str, loss: Tensor, micro_batch: int, measures: Tensor) -> None:
        self.sums.setdefault(split, Sums()).add(loss, self._batch.sizes[micro_batch], measures)

    def _autocast(self) -> AbstractContextManager[None]:
        return self.job.numerics.autocast(self.device)

    def _reseed(
        self, seed_of: Callable[[int, Any, int, int], int], owner: str | int, micro_batch: int
    ) -> None:
        """Seed the generators for the forward of a unit or auxiliary network on a micro-batch."""
        batch = self._batch
        number = batch.first_micro_batch + micro_batch
        self._generators.seed(seed_of(self.job.settings.seed, owner, batch.step, number))


def split_of(split: str, name: str) -> str:
    """Return the key of `HeldChunk.sums` for a criterion's prediction; "" names the main one."""
    return f"{split}.{name}" if name else split


def _apply(unit: Unit, run: Callable[..., Any], values: dict[str, Tensor]) -> None:
    """Run a unit on the values that it reads, and store the values that it writes."""
    made = run(*(values[name] for name in unit.reads))
    values.update(zip(unit.writes, made if isinstance(made, tuple) else (made,), strict=True))
