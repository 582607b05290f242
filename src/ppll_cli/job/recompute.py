"""Recomputes a forward during the backward, to save memory (setting `recompute=true`)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ppll_cli.job.autocast import mended_operations


def recomputed(network: nn.Module, seed: Callable[[], object], *inputs: Tensor) -> Any:
    """Run a network so that autograd keeps only its inputs; the backward runs the network again.

    Return the network's outputs. Gradients are bit-identical to those without recomputing. The
    inputs must not change until the backward.

    `seed` is called before each of the two runs, so that both draw the same random numbers. It must
    seed all generators from which the network draws.
    """
    # The second run changes only these copies, so BatchNorm's statistics are updated once.
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    first = True

    def run(*tensors: Tensor) -> Any:
        nonlocal first
        seed()
        if not first:
            # For the second run, torch's `checkpoint` restores autocast, but not this other mode.
            with mended_operations():
                return functional_call(network, buffers, tensors)
        first = False
        return network(*tensors)

    # `seed` sets the generators before each run, so `checkpoint` need not save and restore them.
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
