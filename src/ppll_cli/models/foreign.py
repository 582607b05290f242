"""Finds networks that compute with parameters of other networks."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn


def uses_others(network: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Return whether a network computes with a parameter that is not among its own.

    This may be a parameter of another unit, or of a network in a plain list.
    """
    own = {id(parameter) for parameter in network.parameters()}
    made: Any = ()
    with suppress(Exception), torch.enable_grad():  # other checks find the errors
        made = network.train()(*inputs)
    tensors = made if isinstance(made, tuple) else (made,)
    nodes = [each.grad_fn for each in tensors if isinstance(each, Tensor)]
    seen: set[object] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in own:
            return True
        nodes += [following for following, _ in node.next_functions]
    return False
