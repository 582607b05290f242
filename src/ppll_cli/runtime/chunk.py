"""A chunk in the hands of a worker: its networks, the tensors of the batch, and what it computes.

One mechanism trains every chunk. `forward` computes its outputs. The gradients of the outputs come
from the next chunk, or where a module ends from its own `loss`. `backward` goes on from there, and
`step` applies the result. What enters a chunk is detached from what made it.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn

from ppll_cli import seeding
from ppll_cli.errors import NonFiniteError
from ppll_cli.local.method import Criterion, Site, module_criterion, module_exports
from ppll_cli.models.unit import Unit, build_unit
from ppll_cli.runtime.averages import Average
from ppll_cli.runtime.items import Batch
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.learning_rate import learning_rate
from ppll_cli.runtime.optimizer import FusedOptimizer, clip, squared_norm, warn_of_skipped
from ppll_cli.runtime.placing import placed
from ppll_cli.runtime.sums import Sums
from ppll_cli.runtime.synced_norm import synced
from ppll_cli.targets import make
from ppll_cli.transport.replicas import Replicas


class HeldChunk:
    """A chunk of a stage. Its tensors are kept by micro-batch, and by name.

    Args:
        job: The run.
        number: Of the chunk in the model.
        site: Where auxiliary networks stand; its module does not count.
        device: Where to compute.
        replicas: Of the stage, where there are several.

    Attributes:
        place: Its units, and the module that they belong to.
        units: The units and their networks, in order.
        exports: Units that make values for later modules' losses, and their networks.
        criterion: The loss at a module's end; its parameters are the auxiliary network.
        optimizer: Steps all parameters; None where there are none.
        sums: What was measured and not yet reported, in training and by split in evaluation.
        nonfinite: Whether a loss of the batch in hand is known to be no finite number.
        skipped: Under `optim.nonfinite=skip` on CUDA: for each step since the last report a scalar
            on the device, 1 where the step was skipped.
        average: Averages the gradients over the replicas, where there are several.
    """

    def __init__(
        self,
        job: Job,
        number: int,
        site: Site,
        device: torch.device,
        replicas: Replicas | None = None,
    ) -> None:
        self.job, self.number, self.device = job, number, device
        self.place = job.layout.chunks[number]
        self._into, self._out = job.routes.into[number], job.routes.out_of(number)
        self.sums: dict[str, Sums] = {}
        self.nonfinite = False
        self.skipped: dict[int, Tensor] = {}
        self._batch = Batch([])
        self._training: bool | None = None
        self._values: dict[int, dict[str, Tensor]] = {}
        self._leaves: dict[int, dict[str, Tensor]] = {}
        self._outputs: dict[int, dict[str, Tensor]] = {}
        self._gradients: dict[int, dict[str, Tensor]] = {}
        self._build(site, replicas)
        # Reading a tensor on CUDA would make the host wait for all that is queued there.
        self._reads_at_once = device.type == "cpu"
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])

    def _build(self, site: Site, replicas: Replicas | None) -> None:
        job, seed = self.job, self.job.seed
        units = [site.units[index] for index in self.place.units]
        self.units = [(unit, build_unit(unit, seed)) for unit in units]
        self.exports: list[tuple[Unit, nn.Module]] = []
        self.criterion: Criterion | None = None
        if self.place.ends_module:
            method, site = make("local", job.local), site.at(self.place.module)
            self.exports = [(u, build_unit(u, seed)) for u in module_exports(method, site)]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.auxiliary_weights(seed, self.place.module))
                self.criterion = module_criterion(method, site)
        if job.sync_batchnorm and replicas is not None:
            self.units = [(unit, synced(network, replicas)) for unit, network in self.units]
            if self.criterion is not None:
                synced(self.criterion, replicas)
        for network in self.networks:
            placed(network, self.device, job.compiled)
        self.optimizer = FusedOptimizer(job.optim, self.parameters) if self.parameters else None
        self.average: Average | None = None
        if replicas is not None:
            early = not job.sync_batchnorm
            self.average = Average(replicas, self.learnt, lambda: self.nonfinite, early)

    # What it holds. Lists of parameters are made once: to walk networks takes longer than many a
    # kernel, and networks keep their parameters.

    @property
    def networks(self) -> list[nn.Module]:
        """The units' and exports' networks, and the criterion."""
        criterion = [] if self.criterion is None else [self.criterion]
        return [network for _, network in (*self.units, *self.exports)] + criterion

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the units and of the auxiliary network; one of two networks comes twice."""
        return [p for network in self.networks for p in network.parameters()]

    @cached_property
    def unit_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit."""
        return [list(network.parameters()) for _, network in self.units]

    @cached_property
    def _weights(self) -> list[nn.Parameter]:
        """The parameters of all units that learn."""
        found = [p for own in self.unit_parameters for p in own if p.requires_grad]
        return list(dict.fromkeys(found))

    @property
    def learnt(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit, and of the auxiliary network. Exports get no gradients."""
        criterion = [] if self.criterion is None else [self.criterion]
        networks = [network for _, network in self.units] + criterion
        return [list(network.parameters()) for network in networks]

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers of all networks, such as BatchNorm's running statistics."""
        return [buffer for network in self.networks for buffer in network.buffers()]

    @cached_property
    def auxiliary(self) -> bool:
        """Whether there is an auxiliary network."""
        return self.criterion is not None and any(True for _ in self.criterion.parameters())

    # The batch

    def begin(self, batch: Batch) -> None:
        """A batch begins."""
        if batch.training != self._training:
            for network in self.networks:
                network.train(batch.training)
        self._batch, self._training = batch, batch.training

    def end(self) -> None:
        """The batch ends; nothing of it is kept."""
        for kept in (self._values, self._leaves, self._outputs, self._gradients):
            kept.clear()

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
        inputs = set(map(_storage, values.values()))
        with self._autocast(), torch.set_grad_enabled(training):
            for unit, network in self.units:
                if training:
                    self._reseed(micro_batch, seeding.unit_forward, unit.name)
                _apply(unit, network, values)
        with self._autocast(), torch.no_grad():
            for unit, network in self.exports:
                _apply(unit, network, values)
                values.update({name: values[name].detach() for name in unit.writes})
        if self._out.names:
            self._outputs[micro_batch] = self._handed_on(values, inputs)

    def _handed_on(self, values: Mapping[str, Tensor], inputs: Container[int]) -> dict[str, Tensor]:
        """What travels on, detached. What a unit made of its input's memory, a view, is copied.

        The input's slot may be given back before a later chunk has read it.
        """
        outputs = {name: values[name].detach() for name in self._out.names}
        made = {name for unit, _ in self.units for name in unit.writes} & outputs.keys()
        views = [name for name in made if _storage(outputs[name]) in inputs]
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
        """From the gradients of the outputs to those of the inputs alone; the graph stays."""
        outputs, gradients = self._roots(self._values[micro_batch], micro_batch)
        if outputs:
            leaves = list(self._leaves[micro_batch].values())
            torch.autograd.backward(outputs, gradients, inputs=leaves, retain_graph=True)
            self._own_input_gradients(micro_batch, gradients)

    def backward_weight(self, micro_batch: int) -> None:
        """From the gradients of the outputs to those of the parameters alone."""
        outputs, gradients = self._roots(self._values.pop(micro_batch), micro_batch)
        self._gradients.pop(micro_batch, None)
        if outputs and self._weights:
            torch.autograd.backward(outputs, gradients, inputs=self._weights)
        self._complete_average()

    def _roots(
        self, values: Mapping[str, Tensor], micro_batch: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Where a backward begins: outputs, inputs handed on among them, and their gradients."""
        gradients = self._gradients.get(micro_batch, {})
        names = [name for name in gradients if values[name].requires_grad]
        return [values[name] for name in names], [gradients[name] for name in names]

    def _own_input_gradients(self, micro_batch: int, received: Sequence[Tensor]) -> None:
        """Copy gradients of inputs that lie in the memory of received ones, as of views they do."""
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
        """The optimizer's step, clipped, or skipped where `nonfinite=skip` and the norm is none.

        Args:
            total: The squared norm of all gradients that are clipped together; None: only the
                chunk's own are, if any.
        """
        optim, step = self.job.optim, self._batch.step
        if self.nonfinite:
            norms = [float(p.grad.norm()) for p in self.parameters if p.grad is not None]
            largest = max((inf if isnan(norm) else norm for norm in norms), default=None)
            raise NonFiniteError(step, self.place.module, largest)
        if self.optimizer is None:
            return
        if total is None and (optim.clip_norm is not None or optim.nonfinite == "skip"):
            total = squared_norm(self.optimizer.parameters)
        nonfinite = None
        if total is not None and optim.nonfinite == "skip":
            nonfinite = total.isfinite().logical_not().float()
            if self.criterion is None:
                pass  # the chunk that ends the module tells
            elif self._reads_at_once:
                warn_of_skipped(self.place.module, [step], nonfinite[None])
            else:
                self.skipped[step] = nonfinite
        if total is not None and optim.clip_norm is not None:
            clip(self.optimizer.parameters, optim.clip_norm, total)
        course = self.job.course
        rate = learning_rate(optim, step, course.steps_per_epoch, course.epochs)
        self.optimizer.step(rate, nonfinite)
        self.optimizer.zero_grad()

    def measure(self, micro_batch: int, split: str) -> None:
        """Loss and metric on an evaluation batch, where a module ends; its tensors are let go."""
        values = self._values.pop(micro_batch)
        if self.criterion is None:
            return
        with self._autocast(), torch.no_grad():
            loss, prediction = self.criterion(values)
            measures = self.job.task.measure(prediction, values, training=False)
        self._add(split, loss, micro_batch, measures)

    def named_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """The networks that a checkpoint holds, by the names that they have in it."""
        for unit, network in self.units:
            yield f"model.{unit.name}", network
        if self.criterion is not None:
            yield f"auxiliary.{self.place.module}", self.criterion

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


def _apply(unit: Unit, network: nn.Module, values: dict[str, Tensor]) -> None:
    """Run a unit on what it reads, and bind what it writes."""
    made = network(*(values[name] for name in unit.reads))
    values.update(zip(unit.writes, made if isinstance(made, tuple) else (made,), strict=True))
