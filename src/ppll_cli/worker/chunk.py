"""A chunk in the hands of a worker: its networks, the tensors of the batch, and what it computes.

One mechanism trains every chunk. `forward` computes its outputs. The gradients of the outputs come
from the next chunk, or where a module ends from its own `loss`. `backward` goes on from there, and
`step` applies the result. What enters a chunk is detached from what made it.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.errors import NonFiniteError
from ppll_cli.job.course import Batch, Version
from ppll_cli.job.halves import WeightHalf, backward_to_inputs
from ppll_cli.job.job import Job
from ppll_cli.job.learning_rate import learning_rate
from ppll_cli.job.optimizer import FusedOptimizer, clip, squared_norm, warn_of_skipped
from ppll_cli.job.recompute import recomputed
from ppll_cli.local.method import Site
from ppll_cli.models.unit import Unit
from ppll_cli.transport.averages import Average
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.networks import Networks
from ppll_cli.worker.sums import Sums


class HeldChunk(Networks):
    """A chunk of a stage. Its tensors are kept by micro-batch, and by name.

    Args:
        job: The run.
        number: The chunk's number in the model.
        site: Where auxiliary networks stand; its module does not count.
        device: Where to compute.
        replicas: The workers that hold the same stage, where there are several.

    Attributes:
        sums: What was measured and not yet reported, in training and by split in evaluation.
        nonfinite: Whether a loss of the batch in hand is known to be no finite number.
        skipped: Under `optim.nonfinite=skip` on CUDA: for each step since the last report a scalar
            on the device, 1 where the step was skipped.
        average: Averages the gradients over the replicas, where there are several.
        squared_norm: The squared gradient norm of the last step, before clipping: a scalar on the
            device. It is the module's under local learning, else the model's; None where nothing
            needs it.

    The networks and the optimizer are those of `Networks`.
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
        self.nonfinite = False
        self.skipped: dict[int, Tensor] = {}
        self.squared_norm: Tensor | None = None
        self._batch = Batch([])
        self._training: bool | None = None
        self._values: dict[int, dict[str, Tensor]] = {}
        self._leaves: dict[int, dict[str, Tensor]] = {}
        self._outputs: dict[int, dict[str, Tensor]] = {}
        self._gradients: dict[int, dict[str, Tensor]] = {}
        self._weight_halves: dict[int, WeightHalf] = {}
        self.average: Average | None = None
        if replicas is not None:
            early = not job.sync_batchnorm
            self.average = Average(replicas, self.learnt, lambda: self.nonfinite, early)
        # Reading a tensor on CUDA would make the host wait for all that is queued there.
        self._reads_at_once = device.type == "cpu"
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])

    def begin(self, batch: Batch) -> None:
        """A batch begins."""
        if batch.training != self._training:
            for network in self.networks:
                network.train(batch.training)
        if batch.averaged and self.ema is not None:
            self.ema.swap()
        self._batch, self._training = batch, batch.training

    def end(self) -> None:
        """The batch ends; nothing of it is kept."""
        if self._batch.averaged and self.ema is not None:
            self.ema.swap()
        for kept in (self._values, self._leaves, self._outputs, self._gradients):
            kept.clear()
        self._weight_halves.clear()

    def take_inputs(self, micro_batch: int, tensors: Mapping[str, Tensor]) -> None:
        """Take what enters the chunk, detached; what takes a gradient becomes a leaf."""
        values = dict(tensors)
        if self._training and self._into.gradients:
            names = self._into.gradients
            leaves = {name: tensors[name].detach().requires_grad_() for name in names}
            values.update(leaves)
            self._leaves[micro_batch] = leaves
        self._values[micro_batch] = values

    def forward(self, micro_batch: int) -> None:
        """Run the units, and outside of the gradient what makes values for later losses."""
        values, training = self._values[micro_batch], self._batch.training
        inputs = set(map(_storage, values.values())) if self._next_is_here else set()
        with self._autocast(), torch.set_grad_enabled(training):
            for unit, network in self.units:
                seed = partial(self._reseed, micro_batch, seeding.unit_forward, unit.name)
                if training and self.job.recompute:
                    _apply(unit, partial(recomputed, network, seed), values)
                    continue
                if training:
                    seed()
                _apply(unit, network, values)
        with self._autocast(), torch.no_grad():
            for unit, network in self.exports:
                _apply(unit, network, values)
                values.update({name: values[name].detach() for name in unit.writes})
        if self._out.names:
            self._outputs[micro_batch] = self._handed_on(values, inputs)

    def _handed_on(self, values: Mapping[str, Tensor], inputs: Container[int]) -> dict[str, Tensor]:
        """What travels on, detached. A view of an input is copied if the next chunk is here.

        The input's slot may be given back before the next chunk has read the view.
        """
        outputs = {name: values[name].detach() for name in self._out.names}
        made = {name for unit, _ in self.units for name in unit.writes} & outputs.keys()
        views = [name for name in made if inputs and _storage(outputs[name]) in inputs]
        return outputs | {name: outputs[name].clone() for name in views}

    def take_outputs(self, micro_batch: int) -> dict[str, Tensor]:
        """What travels to the next chunk, detached; it is not kept here any longer."""
        return self._outputs.pop(micro_batch)

    def loss(self, micro_batch: int) -> None:
        """Compute the loss, and its gradients down to the chunk's outputs.

        The criterion works on detached outputs. So an auxiliary network's time can be told apart
        from the backbone's, and its graph is gone before the backbone's backward begins.
        """
        assert self.criterion is not None
        values, share = self._values[micro_batch], self._batch.share(micro_batch)
        made = {name: values[name] for unit, _ in self.units for name in unit.writes}
        outputs = {n: t.detach().requires_grad_() for n, t in made.items() if t.requires_grad}
        values = {**values, **outputs}
        with self._autocast():
            self._reseed(micro_batch, seeding.auxiliary_forward, self.place.module)
            loss, prediction = self.criterion(values)
            with torch.no_grad():
                measures = self.job.task.measure(prediction, values, training=True)
        self._add("train", loss, micro_batch, measures)
        # Elsewhere it is seen when losses are reported.
        if self._reads_at_once and self.job.optim.nonfinite == "stop":
            self.nonfinite = self.nonfinite or not bool(loss.isfinite())
        if loss.requires_grad:  # or there is nothing to train here
            (loss if share == 1 else loss * share).backward()
        self.take_gradients(
            micro_batch, {n: t.grad for n, t in outputs.items() if t.grad is not None}
        )

    def take_gradients(self, micro_batch: int, gradients: Mapping[str, Tensor]) -> None:
        """Take the gradients of the outputs."""
        self._gradients[micro_batch] = dict(gradients)

    def backward(self, micro_batch: int) -> None:
        """From the gradients of the outputs to those of parameters and inputs, in one call."""
        outputs, gradients = self._roots(self._values.pop(micro_batch), micro_batch)
        self._gradients.pop(micro_batch, None)
        if outputs:
            torch.autograd.backward(outputs, gradients)
            self._own_input_gradients(micro_batch, gradients)
        self._complete_average()

    def backward_input(self, micro_batch: int) -> None:
        """From the gradients of the outputs to those of the inputs alone."""
        outputs, gradients = self._roots(self._values.pop(micro_batch), micro_batch)
        self._gradients.pop(micro_batch, None)
        if outputs:
            leaves = list(self._leaves[micro_batch].values())
            half = backward_to_inputs(outputs, gradients, leaves, self._weights)
            self._weight_halves[micro_batch] = half
            self._own_input_gradients(micro_batch, gradients)

    def backward_weight(self, micro_batch: int) -> None:
        """The gradients of the parameters, from what the half to the inputs has left."""
        if (half := self._weight_halves.pop(micro_batch, None)) is not None:
            half.run()
        self._complete_average()

    def _roots(
        self, values: Mapping[str, Tensor], micro_batch: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Where a backward begins: outputs, inputs handed on among them, and their gradients."""
        gradients = self._gradients.get(micro_batch, {})
        names = [name for name in gradients if values[name].requires_grad]
        return [values[name] for name in names], [gradients[name] for name in names]

    def _own_input_gradients(self, micro_batch: int, received: Sequence[Tensor]) -> None:
        """Copy the gradients of inputs that share memory with received ones; views cause that."""
        slots = set(map(_storage, received))
        for leaf in self._leaves.get(micro_batch, {}).values():
            if leaf.grad is not None and _storage(leaf.grad) in slots:
                leaf.grad = leaf.grad.clone()

    def take_input_gradients(self, micro_batch: int) -> dict[str, Tensor]:
        """The gradients of the inputs, zeros where nothing depends on one; they are not kept."""
        leaves = self._leaves.pop(micro_batch)
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for name, leaf in leaves.items()
        }

    def shapes(self) -> dict[str, list[int]]:
        """The shapes of the batch's tensors, by name, as a report of a failure shows them."""
        kept = self._values.values()
        return {name: list(t.shape) for values in kept for name, t in values.items()}

    def start_average(self) -> None:
        """Average the gradients over the replicas of the stage as the next backward goes."""
        assert self.average is not None
        self.average.start()

    def finish_average(self) -> None:
        """Have the average as gradients."""
        assert self.average is not None
        self.nonfinite = self.average.finish() or self.nonfinite

    def _complete_average(self) -> None:
        if self.average is not None:
            self.average.complete()

    def step(self, total: Tensor | None) -> None:
        """Clip the gradients and step the optimizer.

        Under `optim.nonfinite=skip` the device skips the step if the norm is no finite number.

        Args:
            total: The squared norm of the model's gradients; None: the chunk takes the norm of its
                own, if it needs one.

        Raises:
            NonFiniteError: Under `optim.nonfinite=stop`, a loss was no finite number.
        """
        step = self._batch.step
        if self.nonfinite:
            norms = [float(p.grad.norm()) for p in self.parameters if p.grad is not None]
            largest = max((inf if isnan(norm) else norm for norm in norms), default=None)
            raise NonFiniteError(step, self.place.module, largest)
        if total is None and self.optimizer is not None and self.job.needs_norm:
            total = squared_norm(self.optimizer.parameters)
        self.squared_norm = total
        if self.optimizer is not None:
            self._optimize(self.optimizer, total)
        if self.ema is not None:
            self.ema.update(step)

    def _optimize(self, optimizer: FusedOptimizer, total: Tensor | None) -> None:
        optim, step = self.job.optim, self._batch.step
        nonfinite = None
        if total is not None and optim.nonfinite == "skip":
            nonfinite = total.isfinite().logical_not().float()
            if self.criterion is None:
                pass  # the chunk that ends the module tells
            elif self._reads_at_once:
                warn_of_skipped(self.place.module, [step], nonfinite[None])
            else:
                self.skipped[step] = nonfinite
        for versions in self.versions.values():
            versions.before_step()
        if total is not None and optim.clip_norm is not None:
            clip(optimizer.parameters, optim.clip_norm, total)
        course = self.job.course
        rate = learning_rate(optim, step, course.steps_per_epoch, course.epochs)
        optimizer.step(rate, nonfinite)
        optimizer.zero_grad()

    def see(self, weights: Mapping[str, Tensor], version: Version) -> None:
        """Show the criterion the weights that it watches."""
        assert self.criterion is not None
        with torch.no_grad():
            self.criterion.see(weights, version.steps)

    def measure(self, micro_batch: int, split: str) -> None:
        """Add up loss and metric of an evaluation batch, where a module ends, and free it.

        Auxiliary networks have no averages: with averaged weights only the model's own head counts.
        """
        values = self._values.pop(micro_batch)
        is_last = self.place.module == len(self.job.layout.modules) - 1
        if self.criterion is None or (self._batch.averaged and not is_last):
            return
        with self._autocast(), torch.no_grad():
            loss, prediction = self.criterion(values)
            measures = self.job.task.measure(prediction, values, training=False)
        self._add(split, loss, micro_batch, measures)

    def _add(self, split: str, loss: Tensor, micro_batch: int, measures: Tensor) -> None:
        self.sums.setdefault(split, Sums()).add(loss, self._batch.sizes[micro_batch], measures)

    def _autocast(self) -> AbstractContextManager[None]:
        return self.job.numerics.autocast(self.device)

    def _reseed(
        self, micro_batch: int, seed_of: Callable[[int, Any, int, int], int], owner: str | int
    ) -> None:
        # A unit may draw on the CPU as well as on its device. torch.manual_seed would visit every
        # device, and format a stack trace for each call.
        batch = self._batch
        seed = seed_of(self.job.seed, owner, batch.step, batch.first_micro_batch + micro_batch)
        for generator in self._generators:
            generator.manual_seed(seed)


def _storage(tensor: Tensor) -> int:
    """The address of the memory in which a tensor lies."""
    return tensor.untyped_storage().data_ptr()


def _apply(unit: Unit, run: Callable[..., Any], values: dict[str, Tensor]) -> None:
    """Run a unit on what it reads, and bind what it writes."""
    made = run(*(values[name] for name in unit.reads))
    values.update(zip(unit.writes, made if isinstance(made, tuple) else (made,), strict=True))
