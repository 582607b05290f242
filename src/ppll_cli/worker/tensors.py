"""Holds the tensors of a chunk during a batch."""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ppll_cli.job.halves import WeightHalf
from ppll_cli.pipeline.routes import Routes
from ppll_cli.worker.views import copy_shared, storages

Named = dict[str, Tensor]


@dataclass
class MicroBatch:
    """The tensors of a micro-batch that are still needed.

    Attributes:
        values: The inputs, and all that the units have computed, until the backward.
        leaves: The inputs that need gradients, until `take_input_gradients` is called.
        outputs: The detached outputs, until `take_outputs` is called.
        gradients: The gradients of the outputs, until the backward.
        weight_half: The second half of a split backward (see `job.halves`), until it runs.
        received: The addresses of the received gradients' memory, which `.grad` must not share.
    """

    values: Named
    leaves: Named
    outputs: Named = field(default_factory=dict)
    gradients: Named = field(default_factory=dict)
    weight_half: WeightHalf | None = None
    received: Container[int] = ()


class Tensors:
    """The tensors of a chunk, by the index of the micro-batch.

    `training` says whether the current batch is a training batch; None before the first batch.
    """

    def __init__(self, routes: Routes, chunk: int) -> None:
        self.training: bool | None = None
        self._into, self._out = routes.into[chunk], routes.out_of(chunk)
        self._made = routes.makes[chunk] & {*self._out.names}
        self._next_is_here = chunk + 1 in routes.layout.of(routes.layout.chunks[chunk].stage)
        self._held: dict[int, MicroBatch] = {}

    def __getitem__(self, micro_batch: int) -> MicroBatch:
        return self._held[micro_batch]

    def clear(self) -> None:
        """Free all tensors."""
        self._held.clear()

    def store_inputs(self, micro_batch: int, tensors: Mapping[str, Tensor]) -> None:
        """Store inputs by name; in training, inputs that need gradients become leaves."""
        names = self._into.gradients if self.training else ()
        leaves = {name: tensors[name].detach().requires_grad_() for name in names}
        self._held[micro_batch] = MicroBatch({**tensors, **leaves}, leaves)

    def changing(self, micro_batch: int, state: Callable[[], Iterable[Tensor]]) -> set[int]:
        """Return addresses of memory that may change before the next chunk reads the outputs.

        Call this before the forward. `hold_outputs` copies outputs that are in this memory.
        `state` returns the chunk's weights and buffers. The result is empty if the next chunk is on
        another stage, because then the outputs are sent at once.
        """
        if not self._next_is_here:  # the outputs are sent at once
            return set()
        # A new message may overwrite the inputs, and a step may change weights and buffers.
        return storages([*self[micro_batch].values.values(), *state()])

    def hold_outputs(self, micro_batch: int, changing: set[int]) -> None:
        """Detach the outputs, and store them until `take_outputs` is called.

        `changing` is the result of the method `changing`. Outputs in this memory are copied if
        units of the chunk have made them.
        """
        held = self[micro_batch]
        held.outputs = {name: held.values[name].detach() for name in self._out.names}
        if changing:  # inputs that the chunk passes on need no copies: their slots stay in use
            held.outputs |= copy_shared({name: held.outputs[name] for name in self._made}, changing)

    def take_outputs(self, micro_batch: int) -> Named:
        """Remove and return the detached outputs, by name."""
        held = self[micro_batch]
        outputs, held.outputs = held.outputs, {}
        return outputs

    def store_gradients(self, micro_batch: int, gradients: Mapping[str, Tensor]) -> None:
        """Store the gradients of the chunk's outputs, by name."""
        self[micro_batch].gradients = dict(gradients)

    def take_roots(self, micro_batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs at which a backward starts, and their gradients.

        Also remove the micro-batch's activations (`values`), so that the backward can free them.
        """
        held = self[micro_batch]
        values, gradients = held.values, held.gradients
        held.values, held.gradients = {}, {}
        names = [name for name in gradients if values[name].requires_grad]
        return [values[name] for name in names], [gradients[name] for name in names]

    def take_input_gradients(self, micro_batch: int) -> Named:
        """Remove and return the gradients of the inputs, by name.

        An input without influence on the loss is left out.
        """
        held = self[micro_batch]
        leaves, held.leaves = held.leaves, {}
        # No zeros for the other inputs: then weights of earlier units would get gradients of zero
        # instead of none, and weight decay would change these weights. Back-propagation on one
        # device does not change them.
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of each activation that is still held, by name, for error reports."""
        kept = (pair for held in self._held.values() for pair in held.values.items())
        return {name: list(t.shape) for name, t in kept if isinstance(t, Tensor)}
