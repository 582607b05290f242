"""Trains copies of some units of a model for a few steps, to measure the time of each unit.

The copies run one after another and are called a chain. A unit is timed inside a training step of
the whole chain, because then tensors fill the caches, and memory is allocated and freed, as in a
run. A unit that ran alone in a loop took a fifth less time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppll_cli.config.settings import Settings
from ppll_cli.job.halves import backward_to_inputs
from ppll_cli.job.numerics import Numerics
from ppll_cli.job.optimizer import FusedOptimizer, clip, squared_norm
from ppll_cli.job.placing import placed, prepare_compiler
from ppll_cli.job.recompute import recomputed
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Site
from ppll_cli.models.unit import Unit, units_seeded
from ppll_cli.predict.timing import Stopwatch, batch_like, held, saved_storages, storage


@dataclass(frozen=True)
class Part:
    """A unit of a chain, by its index in the model.

    `inputs` has shape (without the batch dimension) and dtype of each tensor that the unit reads.
    `needs_gradient` says for each of these tensors whether the backward pass computes its gradient.
    """

    index: int
    inputs: tuple[ValueSpec, ...]
    needs_gradient: tuple[bool, ...]


class Saved(NamedTuple):
    """Bytes that a unit keeps in memory for its backward pass, without the unit's inputs.

    `saved_bytes` are kept from the forward pass on. With `recompute=true`, the backward pass first
    repeats the forward pass, which adds `recomputed_bytes`.
    """

    saved_bytes: int
    recomputed_bytes: int


@dataclass(frozen=True)
class Setup:
    """The model and the conditions of a measurement, as plain data for other processes.

    Attributes:
        settings: Settings of the run. `samples` and `threads` replace their batch size and number
            of threads.
        local: Configuration of the local method's class.
        site: What the local method is told about the model. `units` and `modules` are empty; the
            process that measures an auxiliary network replaces them.
        samples: Number of samples of the measured batch.
    """

    settings: Settings
    local: Mapping[str, Any]
    site: Site
    samples: int
    device: str
    threads: int

    @property
    def numerics(self) -> Numerics:
        """The precision and determinism of the computations."""
        return Numerics(self.settings.precision, self.settings.deterministic)

    def units(self) -> tuple[Unit, ...]:
        """Make the model's units, and prepare the compiler if it is used."""
        settings, site = self.settings, self.site
        if settings.compile:
            prepare_compiler()
        return units_seeded(settings.model, site.input_spec, site.task, settings.seed)


@dataclass(frozen=True)
class Work:
    """The description of a chain, which is sent to the process that makes the chain.

    If `split` is True, a backward pass runs in two halves: for gradients of inputs, then of
    parameters.
    """

    setup: Setup
    parts: tuple[Part, ...]
    split: bool = False


class Chain:
    """Some units of a model, one after another, with random weights, and one optimizer for all."""

    def __init__(self, work: Work) -> None:
        self.work, self.settings = work, work.setup.settings
        self.device = torch.device(work.setup.device)
        units, compiled = work.setup.units(), self.settings.compile
        self.units = [units[part.index] for part in work.parts]
        self.networks = [placed(u.build(), self.device, compiled).train() for u in self.units]
        self.parameters = [p for network in self.networks for p in network.parameters()]
        optim = self.settings.optim
        self.optimizer = FusedOptimizer(optim, self.parameters) if self.parameters else None
        self._made: dict[tuple[str, ValueSpec], Tensor] = {}

    def step(self) -> list[float]:
        """Run a training step, and time each forward and backward pass and the optimizer's step.

        Random numbers replace inputs that no earlier unit of the chain makes.

        Returns:
            Seconds of each unit's forward pass, of each unit's backward pass from the last unit to
                the first, and of the optimizer's step. A split backward pass has two times: first
                of the half for the inputs, then of the half for the parameters.
        """
        watch, numerics = Stopwatch(self.device), self.work.setup.numerics
        values: dict[str, Tensor] = {}
        passes = []
        for unit, network, part in zip(self.units, self.networks, self.work.parts, strict=True):
            leaves = self._leaves(unit, part, values)
            watch.mark()
            # No seed: the repeated pass may draw other random numbers, but takes the same time.
            run = partial(recomputed, network, lambda: None) if self.settings.recompute else network
            with numerics.autocast(self.device):
                made = run(*leaves)
            watch.mark()
            outputs = made if isinstance(made, tuple) else (made,)
            values.update(zip(unit.writes, outputs, strict=True))
            passes.append((unit, leaves, outputs))
        gradients: dict[str, Tensor] = {}
        networks = list(self.networks)
        while passes:  # frees a unit's outputs as soon as its backward pass has run
            unit, leaves, outputs = passes.pop()
            weights = [p for p in networks.pop().parameters() if p.requires_grad]
            split = weights if self.work.split else None
            _backward(unit, leaves, outputs, gradients, watch, split)
        watch.mark()
        if self.optimizer is not None:
            if (limit := self.settings.optim.clip_norm) is not None:
                clip(self.parameters, limit, squared_norm(self.parameters))
            self.optimizer.step(self.settings.optim.lr)
            self.optimizer.zero_grad()
        watch.mark()
        return watch.spans()

    def saved_bytes(self) -> list[Saved]:
        """Run the forward passes, and return the bytes that each unit leaves in memory.

        These bytes are the unit's outputs and the tensors that autograd saves, without parameters,
        buffers and inputs. A storage that several tensors share counts once. With recomputation,
        only outputs stay in memory.
        """
        values: dict[str, Tensor] = {}
        sizes, numerics = [], self.work.setup.numerics
        for unit, network, part in zip(self.units, self.networks, self.work.parts, strict=True):
            leaves = self._leaves(unit, part, values)
            with numerics.autocast(self.device), saved_storages([*leaves, *held(network)]) as saved:
                made = network(*leaves)
            outputs = made if isinstance(made, tuple) else (made,)
            kept = dict(map(storage, outputs))
            whole = sum((saved | kept).values())
            least = sum(kept.values()) if self.settings.recompute else whole
            sizes.append(Saved(least, whole - least))
            values.update(zip(unit.writes, (x.detach() for x in outputs), strict=True))
        return sizes

    def bytes_per_parameter(self) -> float:
        """Return the bytes per trained parameter, with its gradient and its optimizer state.

        Call this after a step, because the optimizer has no state before. Without trained
        parameters, the result is 0.
        """
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        if self.optimizer is None or not trained:
            return 0.0
        states = self.optimizer.state.values()
        kept = sum(value.nbytes for state in states for value in state.values())
        parameters = sum(parameter.nbytes for parameter in trained)
        return (2 * parameters + kept) / sum(parameter.numel() for parameter in trained)

    def _leaves(self, unit: Unit, part: Part, values: Mapping[str, Tensor]) -> list[Tensor]:
        leaves, samples = [], self.work.setup.samples
        for name, spec, needed in zip(unit.reads, part.inputs, part.needs_gradient, strict=True):
            x = values.get(name)
            if x is None or tuple(x.shape[1:]) != spec.shape:
                x = self._made.get((name, spec))
            if x is None:
                x = self._made[name, spec] = batch_like(spec, samples, self.device)
            leaves.append(x.detach().requires_grad_(needed and x.is_floating_point()))
        return leaves


def _backward(
    unit: Unit,
    leaves: Sequence[Tensor],
    outputs: Sequence[Tensor],
    gradients: dict[str, Tensor],
    watch: Stopwatch,
    weights: Sequence[Tensor] | None,
) -> None:
    roots, given = [], []
    for name, output in zip(unit.writes, outputs, strict=True):
        if output.requires_grad:
            gradient = gradients.get(name)
            if gradient is None or gradient.shape != output.shape:
                # The gradients of a mean loss have this scale. Smaller gradients could become
                # denormal numbers, which are slow.
                gradient = torch.randn_like(output) / len(output)
            roots.append(output)
            given.append(gradient.to(output.dtype))
    watch.mark()
    if weights is None:
        if roots:
            torch.autograd.backward(roots, given)
        watch.mark()
    else:
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        half = backward_to_inputs(roots, given, inputs, weights)
        watch.mark()
        watch.mark()
        half.run()
        watch.mark()
    for name, leaf in zip(unit.reads, leaves, strict=True):
        if leaf.grad is not None:
            gradients[name] = leaf.grad
