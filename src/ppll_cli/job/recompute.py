"""A forward pass that keeps its inputs alone and is run again in the backward: `recompute=true`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recomputed(network: nn.Module, seed: Callable[[], object], *inputs: Tensor) -> Any:
    """Run a network, and run it again when the backward asks for what the first pass computed.

    The graph is that of the first pass, so gradients have the same bits as without recomputing. The
    second pass draws the same random numbers. It works on copies of the buffers as they were before
    the first pass: BatchNorm's running statistics move once for each batch.

    Args:
        network: In training.
        seed: Seeds all generators from which the network may draw.
        inputs: What the network reads. They must not change until the backward.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    first = True

    def run(*tensors: Tensor) -> Any:
        nonlocal first
        seed()
        if not first:
            return functional_call(network, buffers, tensors)
        first = False
        return network(*tensors)

    # The seed makes the generators' states equal: to keep them would copy them for each call.
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
