"""The backward of a chunk in two halves: gradients of inputs, and later of parameters."""

from ppll_cli.job.halves import backward_to_inputs
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.views import storages


def backward_input(chunk: HeldChunk, micro_batch: int) -> None:
    """Compute the gradients of the inputs from those of the outputs."""
    outputs, gradients = chunk.tensors.take_roots(micro_batch)
    if outputs:
        held = chunk.tensors[micro_batch]
        leaves = [*held.leaves.values()]
        held.weight_half = backward_to_inputs(outputs, gradients, leaves, chunk.unit_weights)
        held.received = storages(gradients)
        chunk.copy_received_gradients(micro_batch, held.received)


def backward_weight(chunk: HeldChunk, micro_batch: int) -> None:
    """Compute the gradients of the parameters, after `backward_input`."""
    held = chunk.tensors[micro_batch]
    half, held.weight_half = held.weight_half, None
    if half is not None:
        half.run()
        chunk.copy_received_gradients(micro_batch, held.received)
    chunk.complete_average()
