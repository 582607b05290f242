"""The part of a model that one worker holds, and what it computes."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from math import inf, isnan

import torch
from torch import Tensor, nn

from ppll_cli import seeding
from ppll_cli.errors import AttachedError, NonFiniteError
from ppll_cli.local.method import Site, module_criterion, module_exports
from ppll_cli.models.unit import Unit, build_unit
from ppll_cli.partition.layout import Chunk, Edge
from ppll_cli.runtime.averages import Average
from ppll_cli.runtime.checkpoint import SavedTensors
from ppll_cli.runtime.chunk import StageChunk, warn_of_skipped
from ppll_cli.runtime.job import Job
from ppll_cli.runtime.learning_rate import learning_rate
from ppll_cli.runtime.optimizer import FusedOptimizer, clip, squared_norm
from ppll_cli.runtime.placing import placed
from ppll_cli.runtime.synced_norm import synced
from ppll_cli.targets import make
from ppll_cli.transport.replicas import Replicas


class Stage:
    """The units of one stage, and the tensors of the batch in hand.

    Tensors have names, and each micro-batch has its own. Under back-propagation the inputs that
    units made are leaves, whose gradients travel upstream; under local learning nothing that enters
    a chunk has a gradient.

    Args:
        job: The run.
        index: Number of the stage.
        device: Where to compute.
        replicas: Of the stage, where there are several.
    """

    def __init__(
        self, job: Job, index: int, device: torch.device, replicas: Replicas | None = None
    ) -> None:
        self.job, self.index, self.device, self._replicas = job, index, device, replicas
        self.inputs_edge: Edge | None = job.edges[index - 1] if index > 0 else None
        self.outputs_edge: Edge | None = job.edges[index] if index < len(job.edges) else None
        site = job.site(job.units())
        self.chunks = [self._build(place, site) for place in job.layout.chunks(index)]
        self.values: dict[int, dict[str, Tensor]] = {}
        self._leaves: dict[int, dict[str, Tensor]] = {}
        self._losses: dict[int, Tensor] = {}
        self._norm: Tensor | None = None
        self._training: bool | None = None
        self._step = 0
        self._steps_per_epoch = job.course.steps_per_epoch
        self.sizes: list[int] = []
        self._samples = self._first_micro_batch = 0
        # Reading a tensor on CUDA would make the host wait for all that is queued there.
        self.reads_at_once = device.type == "cpu"
        self.generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self.generators.append(torch.cuda.default_generators[index])

    def _build(self, place: Chunk, site: Site) -> StageChunk:
        job = self.job
        units = [site.units[index] for index in place.units]
        chunk = StageChunk(place, [(unit, build_unit(unit, job.seed)) for unit in units], [], None)
        if place.ends_module:
            method, site = make("local", job.local), site.at(place.module)
            exports = module_exports(method, site)
            chunk.exports = [(unit, build_unit(unit, job.seed)) for unit in exports]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.auxiliary_weights(job.seed, place.module))
                chunk.criterion = module_criterion(method, site)
        if job.sync_batchnorm and self._replicas is not None:
            chunk.units = [(u, synced(network, self._replicas)) for u, network in chunk.units]
            if chunk.criterion is not None:
                synced(chunk.criterion, self._replicas)
        for network in chunk.networks:
            placed(network, self.device, job.compiled)
        if chunk.parameters:
            chunk.optimizer = FusedOptimizer(job.optim, chunk.parameters)
        if self._replicas is not None:
            early = not job.sync_batchnorm
            chunk.average = Average(self._replicas, chunk.learnt, lambda: chunk.nonfinite, early)
        return chunk

    def begin(
        self,
        training: bool,
        sizes: list[int],
        step: int = 0,
        samples: int | None = None,
        first_micro_batch: int = 0,
    ) -> None:
        """A batch begins.

        Args:
            training: Else it is an evaluation batch.
            sizes: Samples of each micro-batch.
            step: Optimizer steps before a training batch.
            samples: Of the whole batch, if other replicas have a share of it.
            first_micro_batch: How many micro-batches replicas before this one have.
        """
        if training != self._training:
            for chunk in self.chunks:
                for network in chunk.networks:
                    network.train(training)
        self._training, self.sizes, self._step = training, sizes, step
        self._samples = sum(sizes) if samples is None else samples
        self._first_micro_batch = first_micro_batch

    def end(self) -> None:
        """The batch ends; nothing of it is kept."""
        self.values.clear()
        self._leaves.clear()
        self._losses.clear()

    def put(self, micro_batch: int, tensors: Mapping[str, Tensor]) -> None:
        """Take what enters the stage for a micro-batch."""
        self.values[micro_batch] = dict(tensors)
        if self._training and self.inputs_edge is not None:
            names = self.inputs_edge.gradients
            leaves = {name: tensors[name].detach().requires_grad_() for name in names}
            self.values[micro_batch].update(leaves)
            self._leaves[micro_batch] = leaves

    def outputs(self, micro_batch: int) -> dict[str, Tensor]:
        """What crosses the cut behind the stage, detached."""
        assert self.outputs_edge is not None
        values = self.values[micro_batch]
        return {name: values[name].detach() for name in self.outputs_edge.names}

    def forward(self, chunk: StageChunk, micro_batch: int) -> None:
        """Run a chunk's units, and outside of the gradient what makes values for later losses.

        Raises:
            AttachedError: Under local learning, what another module made has a gradient.
        """
        values = self.values[micro_batch]
        if self.job.local_learning:
            attached = [name for name, tensor in values.items() if tensor.requires_grad]
            if attached:
                raise AttachedError(chunk.place.module, attached)
        with self._autocast(), torch.set_grad_enabled(bool(self._training)):
            for unit, network in chunk.units:
                if self._training:
                    number = self._first_micro_batch + micro_batch
                    seed = seeding.unit_forward(self.job.seed, unit.name, self._step, number)
                    self._reseed(seed)
                _apply(unit, network, values)
        with self._autocast(), torch.no_grad():
            for unit, network in chunk.exports:
                _apply(unit, network, values)
                values.update({name: values[name].detach() for name in unit.writes})

    def local_loss(self, chunk: StageChunk, micro_batch: int) -> dict[str, Tensor]:
        """A module's local loss, and its gradients down to the module's outputs.

        The auxiliary network works on detached outputs, so that its time and the backbone's can be
        told apart and its graph is gone before the backbone's backward begins.

        Returns:
            The detached outputs, with gradients where the loss depends on them.
        """
        values = self.values[micro_batch]
        made = {name: values[name] for unit, _ in chunk.units for name in unit.writes}
        detached = {
            name: tensor.detach().requires_grad_()
            for name, tensor in made.items()
            if tensor.requires_grad
        }
        loss = self._loss(chunk, micro_batch, {**values, **detached})
        if self.job.replicas > 1:
            loss = loss * self._share(micro_batch)
        if loss.requires_grad:  # or there is nothing to train here
            loss.backward()  # type: ignore[no-untyped-call]
        return detached

    def local_backward(
        self, chunk: StageChunk, micro_batch: int, outputs: Mapping[str, Tensor]
    ) -> None:
        """A module's backward from the gradients of its outputs, which are detached then."""
        values = self.values[micro_batch]
        names = [name for name, output in outputs.items() if output.grad is not None]
        gradients = [outputs[name].grad for name in names]
        if names:
            torch.autograd.backward([values[name] for name in names], gradients)
        if chunk.average is not None:
            chunk.average.complete()
        for name in outputs:
            values[name] = values[name].detach()

    def local_step(self, chunk: StageChunk) -> None:
        """The step of a module's optimizer."""
        optim = self.job.optim
        total = None
        if optim.clip_norm is not None or optim.nonfinite == "skip":
            total = squared_norm(chunk.optimizer.parameters if chunk.optimizer else ())
        self._step_optimizer(chunk, total)

    def loss(self, chunk: StageChunk, micro_batch: int) -> None:
        """The task's loss, weighted by the micro-batch's share of the batch."""
        values = self.values[micro_batch]
        loss = self._loss(chunk, micro_batch, values)
        self._losses[micro_batch] = loss * self._share(micro_batch)

    def _share(self, micro_batch: int) -> float:
        """Of a batch's loss and gradients, how much is a micro-batch's."""
        return self.sizes[micro_batch] / self._samples

    def start_average(self, chunk: StageChunk) -> None:
        """Average a chunk's gradients over the replicas of the stage as the next backward goes."""
        assert chunk.average is not None
        chunk.average.start()

    def finish_average(self, chunk: StageChunk) -> None:
        """Have the average as a chunk's gradients."""
        assert chunk.average is not None
        chunk.nonfinite = chunk.average.finish() or chunk.nonfinite

    def backward(self, micro_batch: int, gradients: Mapping[str, Tensor]) -> None:
        """One backward pass, from all that left the stage or from the loss.

        Args:
            micro_batch: Index of the micro-batch within its batch, from 0.
            gradients: Received for what crossed the cut behind the stage.
        """
        values = self.values.pop(micro_batch)
        if self.outputs_edge is None:
            torch.autograd.backward([self._losses.pop(micro_batch)])
        else:
            names = [n for n in self.outputs_edge.gradients if values[n].requires_grad]
            roots = [values[name] for name in names]
            if roots:
                torch.autograd.backward(roots, [gradients[name] for name in names])
        for chunk in self.chunks:
            if chunk.average is not None:
                chunk.average.complete()

    def input_gradients(self, micro_batch: int) -> dict[str, Tensor]:
        """The gradients of what entered the stage; zeros where nothing depends on it."""
        leaves = self._leaves.pop(micro_batch)
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for name, leaf in leaves.items()
        }

    def add_norms(self, before: Tensor | None) -> Tensor:
        """The running sum of the units' squared gradient norms, in the order of the units."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if before is not None:
            total = before
        for chunk in self.chunks:
            for parameters in chunk.unit_parameters:
                total = total + squared_norm(parameters)
        return total

    def step(self, total: Tensor | None) -> None:
        """The optimizer's step for all units, clipped by the squared norm of the whole model."""
        for chunk in self.chunks:
            self._step_optimizer(chunk, total)

    def measure(self, chunk: StageChunk, micro_batch: int, split: str) -> None:
        """Loss and metric of a module on an evaluation batch."""
        if chunk.criterion is None:
            return
        values = self.values[micro_batch]
        with self._autocast(), torch.no_grad():
            loss, prediction = chunk.criterion(values)
            measures = self.job.task.measure(prediction, values, training=False)
        chunk.add(split, loss, self.sizes[micro_batch], measures)

    def tensors(self) -> dict[str, Tensor]:
        """All parameters, buffers and optimizer states by name, whatever the partition is.

        Names begin with `model.` and a unit's name, `auxiliary.` and a module's number, or
        `optimizer.` and a parameter's name of one of these.
        """
        found: dict[str, Tensor] = {}
        for chunk in self.chunks:
            for prefix, network in self._named_networks(chunk):
                for name, tensor in network.state_dict().items():
                    found[f"{prefix}.{name}"] = tensor
                for name, parameter in network.named_parameters():
                    state = chunk.optimizer.state.get(parameter, {}) if chunk.optimizer else {}
                    for key, value in state.items():
                        found[f"optimizer.{prefix}.{name}.{key}"] = value
        return found

    def restore(self, saved: SavedTensors) -> None:
        """Take parameters, buffers and optimizer states from a checkpoint of any partition."""
        for chunk in self.chunks:
            for prefix, network in self._named_networks(chunk):
                values = {name: saved[f"{prefix}.{name}"] for name in network.state_dict()}
                network.load_state_dict(values)
                for name, parameter in network.named_parameters():
                    start = f"optimizer.{prefix}.{name}."
                    keys = [n.removeprefix(start) for n in saved.names if n.startswith(start)]
                    state = {k: _like(parameter, saved[start + k]) for k in keys if "." not in k}
                    if chunk.optimizer is not None:
                        chunk.optimizer.restore(parameter, state)

    def _named_networks(self, chunk: StageChunk) -> Iterator[tuple[str, nn.Module]]:
        for unit, network in chunk.units:
            yield f"model.{unit.name}", network
        if chunk.criterion is not None:
            yield f"auxiliary.{chunk.place.module}", chunk.criterion

    def _loss(self, chunk: StageChunk, micro_batch: int, values: Mapping[str, Tensor]) -> Tensor:
        assert chunk.criterion is not None
        with self._autocast():
            seed, module = self.job.seed, chunk.place.module
            number = self._first_micro_batch + micro_batch
            self._reseed(seeding.auxiliary_forward(seed, module, self._step, number))
            loss, prediction = chunk.criterion(values)
            with torch.no_grad():
                measures = self.job.task.measure(prediction, values, training=True)
        chunk.add("train", loss, self.sizes[micro_batch], measures)
        # Elsewhere it is seen when losses are reported.
        if self.reads_at_once and self.job.optim.nonfinite == "stop":
            chunk.nonfinite = chunk.nonfinite or not bool(loss.isfinite())
        assert isinstance(loss, Tensor)
        return loss

    def _step_optimizer(self, chunk: StageChunk, total: Tensor | None) -> None:
        """A step, which the device skips where `nonfinite=skip` and the norm is not finite.

        Args:
            chunk: Whose parameters are stepped.
            total: The squared norm of the gradients; None where nobody asks for it.
        """
        optim = self.job.optim
        if chunk.nonfinite:
            norms = [float(p.grad.norm()) for p in chunk.parameters if p.grad is not None]
            largest = max((inf if isnan(norm) else norm for norm in norms), default=None)
            raise NonFiniteError(self._step, chunk.place.module, largest)
        if chunk.optimizer is None:
            return
        nonfinite = None
        if total is not None and optim.nonfinite == "skip":
            nonfinite = total.isfinite().logical_not().float()
            if self.reads_at_once:
                warn_of_skipped(chunk.place.module, [self._step], nonfinite[None])
            else:
                chunk.skipped[self._step] = nonfinite
        if total is not None and optim.clip_norm is not None:
            clip(chunk.optimizer.parameters, optim.clip_norm, total)
        rate = learning_rate(optim, self._step, self._steps_per_epoch, self.job.course.epochs)
        chunk.optimizer.step(rate, nonfinite)
        chunk.optimizer.zero_grad()

    def _autocast(self) -> AbstractContextManager[None]:
        return self.job.numerics.autocast(self.device)

    def _reseed(self, seed: int) -> None:
        # A unit may draw on the CPU as well as on its device. torch.manual_seed would visit every
        # device, and format a stack trace for each call.
        for generator in self.generators:
            generator.manual_seed(seed)


def _like(parameter: Tensor, saved: Tensor) -> Tensor:
    """A state on the parameter's device, and in its memory format if it has its shape."""
    if saved.shape != parameter.shape:
        return saved.to(parameter.device)
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)


def _apply(unit: Unit, network: nn.Module, values: dict[str, Tensor]) -> None:
    """Run a unit on what it reads, and bind what it writes."""
    made = network(*(values[name] for name in unit.reads))
    values.update(zip(unit.writes, made if isinstance(made, tuple) else (made,), strict=True))
