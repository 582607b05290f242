"""Computes a chunk (units that one stage holds): forward, loss, backward, step and measurements.

All chunks are trained in the same way. `forward` computes the outputs of the chunk. The gradients
of the outputs come from the next chunk, or from the chunk's own `loss` if a module ends with this
chunk. `backward` continues from these gradients, and `step` updates the weights. The inputs of a
chunk are detached, so autograd stops at them.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.job.course import Batch
from ppll_cli.job.halves import WeightHalf, backward_to_inputs
from ppll_cli.job.job import Job
from ppll_cli.job.learning_rate import learning_rate
from ppll_cli.job.optimizer import clip, squared_norm
from ppll_cli.job.recompute import recomputed
from ppll_cli.local.method import Site
from ppll_cli.models.unit import Unit
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.generators import Generators
from ppll_cli.worker.networks import Networks
from ppll_cli.worker.sums import Sums, split_of
from ppll_cli.worker.views import apart, as_received, own_gradients, storages

Named = dict[str, Tensor]
"""Tensors by name."""


@dataclass
class _MicroBatch:
    """The tensors of a micro-batch that are still needed.

    Attributes:
        values: The inputs, and everything that the units have computed; emptied by the backward.
        leaves: The inputs that need gradients.
        outputs: The detached outputs for the next chunk, until it takes them.
        gradients: The gradients of the outputs, until the backward.
        weight_half: The second half of a split backward, from `backward_input` until it runs.
        received: The memory addresses of the gradients that `weight_half` reads.
    """

    values: Named
    leaves: Named
    outputs: Named = field(default_factory=dict)
    gradients: Named = field(default_factory=dict)
    weight_half: WeightHalf | None = None
    received: Container[int] = ()


class HeldChunk(Networks):
    """A chunk on a worker, with the tensors of the current batch.

    Attributes:
        sums: Losses and metrics that are not reported yet, by split ("train" in training). For the
            additional predictions of a criterion the key is the result of `split_of`.
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
        self._is_last = site.at(self.place.module).is_last
        self._held: dict[int, _MicroBatch] = {}
        self._generators = Generators(device, job.settings.seed)

    def begin(self, batch: Batch) -> None:
        """Prepare for a batch: set the networks' mode, and choose averaged or plain weights."""
        if batch.training != self._training:
            for network in self.networks:
                network.train(batch.training)
        self.use_averages(batch.averaged)
        self._batch, self._training = batch, batch.training

    def take_inputs(self, micro_batch: int, tensors: Mapping[str, Tensor]) -> None:
        """Store a micro-batch's inputs by name; inputs that need gradients become leaves."""
        names = self._into.gradients if self._training else ()
        leaves = {name: tensors[name].detach().requires_grad_() for name in names}
        self._held[micro_batch] = _MicroBatch({**tensors, **leaves}, leaves)

    def forward(self, micro_batch: int) -> None:
        """Run the units of the chunk on a micro-batch.

        Then run the exports, without gradients: they compute values for losses of later modules.
        """
        held, batch = self._held[micro_batch], self._batch
        values = held.values
        changing = storages([*values.values(), *self.unit_state]) if self._next_is_here else set()
        with self.autocast(), torch.set_grad_enabled(batch.training):
            for unit, network in self.units:
                run: Callable[..., Any] = network
                if batch.training:
                    of = seeding.unit_forward
                    seed = partial(self._generators.seed, of, unit.name, batch, micro_batch)
                    if self.job.settings.recompute:
                        run = partial(recomputed, network, seed)
                    else:
                        seed()
                _apply(unit, run, values)
        with self.autocast(), torch.no_grad():
            for unit, network in self.exports:
                _apply(unit, network, values)
                values.update({name: values[name].detach() for name in unit.writes})
        held.outputs = {name: values[name].detach() for name in self._out.names}
        if changing:
            # The next chunk is on this stage. Before it reads an output, the channel may reuse the
            # slot of an input, and a step may change a weight. So views of these are copied.
            made = {name for unit, _ in self.units for name in unit.writes} & held.outputs.keys()
            held.outputs |= apart({name: held.outputs[name] for name in made}, changing)

    def take_outputs(self, micro_batch: int) -> Named:
        """Remove the detached outputs for the next chunk from this chunk, and return them."""
        held = self._held[micro_batch]
        outputs, held.outputs = held.outputs, {}
        return outputs

    def loss(self, micro_batch: int) -> None:
        """Compute the loss and its gradients with respect to the chunk's outputs.

        The criterion gets detached outputs. Thus the times of the auxiliary network and of the
        chunk's units can be measured separately, and the auxiliary network's graph is freed before
        the backward of the units begins.
        """
        assert self.criterion is not None
        values, batch = self._held[micro_batch].values, self._batch
        made = {name: values[name] for unit, _ in self.units for name in unit.writes}
        outputs = {n: t.detach().requires_grad_() for n, t in made.items() if t.requires_grad}
        values = {**values, **outputs}
        with self.autocast():
            of = seeding.auxiliary_forward
            self._generators.seed(of, self.place.module, batch, micro_batch)
            loss, prediction = self.criterion(values)
            with torch.no_grad():
                measures = self.job.task.measure(prediction, values, training=True)
        sums = self.sums.setdefault("train", Sums())
        sums.add(loss, batch.sizes[micro_batch], measures)
        self.nonfinite.check(loss)
        share = batch.share(micro_batch)
        if loss.requires_grad:  # otherwise no parameter of this chunk is trained
            (loss if share == 1 else loss * share).backward()
        gradients = {n: t.grad for n, t in outputs.items() if t.grad is not None}
        self.take_gradients(micro_batch, gradients)

    def take_gradients(self, micro_batch: int, gradients: Mapping[str, Tensor]) -> None:
        """Store the gradients of the chunk's outputs, by name."""
        self._held[micro_batch].gradients = dict(gradients)

    def backward(self, micro_batch: int) -> None:
        """Compute the gradients of parameters and inputs from the gradients of outputs."""
        outputs, gradients = self._take_roots(micro_batch)
        if outputs:
            torch.autograd.backward(outputs, gradients)
            self._own_gradients(micro_batch, storages(gradients))
        self.complete_average()

    def backward_input(self, micro_batch: int) -> None:
        """Compute only the gradients of the inputs, from the gradients of the outputs."""
        outputs, gradients = self._take_roots(micro_batch)
        if outputs:
            held = self._held[micro_batch]
            leaves = [*held.leaves.values()]
            held.weight_half = backward_to_inputs(outputs, gradients, leaves, self.unit_weights)
            held.received = storages(gradients)
            self._own_gradients(micro_batch, held.received)

    def backward_weight(self, micro_batch: int) -> None:
        """Compute the gradients of the parameters from what `backward_input` has kept."""
        held = self._held[micro_batch]
        half, held.weight_half = held.weight_half, None
        if half is not None:
            half.run()
            self._own_gradients(micro_batch, held.received)
        self.complete_average()

    def take_input_gradients(self, micro_batch: int) -> Named:
        """Return the inputs' gradients by name, and forget them.

        An input without influence on the loss has no gradient. Zeros in its place would make
        optimizers decay weights that back-propagation on one device does not touch.
        """
        held = self._held[micro_batch]
        leaves, held.leaves = held.leaves, {}
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    def _take_roots(self, micro_batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors at which a backward starts, and their gradients.

        The tensors are the chunk's outputs, including inputs that it passes on unchanged. The chunk
        forgets the micro-batch's values, so that the backward can free them.
        """
        held = self._held[micro_batch]
        values, gradients = held.values, held.gradients
        held.values, held.gradients = {}, {}
        names = [name for name in gradients if values[name].requires_grad]
        return [values[name] for name in names], [gradients[name] for name in names]

    def _own_gradients(self, micro_batch: int, received: Container[int]) -> None:
        """Copy each gradient of an input or a weight that shares memory with a received gradient.

        Autograd can store a received gradient itself in `.grad`, without a copy: for example the
        gradient of a position embedding that is added to a batch of one sample. The next message in
        the same slot would overwrite it. A chunk that ends a module receives no gradients.
        """
        if not self.place.ends_module:
            own_gradients([*self._held[micro_batch].leaves.values(), *self.unit_weights], received)

    def step(self, step: int, total: Tensor | None) -> None:
        """Clip the gradients and do one optimizer step.

        Under `optim.nonfinite=skip` the device skips the step if the gradient norm is not finite.

        Args:
            step: Number of optimizer steps done before.
            total: Squared norm of the model's gradients, a scalar. If None, the chunk computes the
                norm of its own gradients if it needs one.

        Raises:
            NonFiniteError: A loss is not finite, and `optim.nonfinite` is `stop`.
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

    def measure(self, micro_batch: int, split: str) -> None:
        """Compute and add the loss and metrics of an evaluation micro-batch, and free its tensors.

        Only a chunk at the end of a module has a loss. Auxiliary networks have no averaged weights,
        so with averaged weights only the last module, which has the model's own head, is measured.
        """
        held = self._held[micro_batch]
        values, held.values = held.values, {}
        if self.criterion is None or (self.averaged and not self._is_last):
            return
        with self.autocast(), torch.no_grad():
            loss, prediction = self.criterion(values)
            predictions = {"": prediction, **self.criterion.predict_further(values)}
            for name, found in predictions.items():
                measures = self.job.task.measure(found, values, training=False)
                sums = self.sums.setdefault(split_of(split, name), Sums())
                sums.add(loss, self._batch.sizes[micro_batch], measures)

    def end(self) -> None:
        """Free all tensors of the batch."""
        self._held.clear()

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of each tensor of the batch, by name, for a report of a failure."""
        kept = [held.values for held in self._held.values()]
        named = (pair for values in kept for pair in values.items())
        return {name: list(t.shape) for name, t in named if isinstance(t, Tensor)}


def _apply(unit: Unit, run: Callable[..., Any], values: Named) -> None:
    """Run a unit on the values that it reads, and store the values that it writes.

    Raises:
        TypeError: A value that the unit returned is not a tensor.
    """
    made = run(*(values[name] for name in unit.reads))
    made = made if isinstance(made, tuple) else (made,)
    for name, value in zip(unit.writes, made, strict=True):
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"unit {unit.name} returned {kind} instead of the tensor {name}")
        values[name] = as_received(value)
