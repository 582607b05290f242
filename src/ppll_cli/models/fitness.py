"""Checks whether the program can train a unit's network."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def check_network(module: object) -> None:
    """Refuse an object that is not a network, or a network that cannot be trained or saved.

    Raises:
        TypeError: The object is refused; the message says why.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{type(module).__name__} was built instead of an nn.Module")
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise TypeError(f"the parameter {name!r} has no shape: give lazy layers their sizes")
        if parameter.is_complex():
            raise TypeError(
                f"the parameter {name!r} is complex: keep torch.view_as_real of it as the "
                "parameter, and use torch.view_as_complex in forward()"
            )
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"its state_dict() has {name!r}, {type(value).__name__} instead of a tensor: keep "
                "its values in buffers"
            )
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            named = f"the layer {(name or type(layer).__name__)!r}"
            if layer.sparse:
                raise TypeError(f"{named} makes sparse gradients: give it sparse=False")
            if layer.max_norm is not None:  # replicas would differ: each changes the rows it reads
                raise TypeError(f"{named} changes its weights in forward(): give it max_norm=None")


def check_evaluation(name: str, layer: nn.Module) -> None:
    """Refuse a BatchNorm layer that normalises by the statistics of the batch also in evaluation.

    Call this only for a layer that gets one value per channel and sample. Without running
    statistics, such a layer fails for a batch of one sample. `name` is its name in the network.

    Raises:
        TypeError: The layer has no running statistics.
    """
    if layer.running_mean is None:
        raise TypeError(
            f"the layer {(name or type(layer).__name__)!r} has track_running_stats=False and gets "
            "one value per channel and sample: in evaluation its output depends on the batch that "
            "a sample is in, and a batch of one sample fails; use track_running_stats=True or "
            "another norm, such as LayerNorm"
        )


def check_own(module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Refuse a network with parameters that existed before `build` made it.

    Args:
        module: The network that `build` has returned, on the meta device.
        build: Makes the network; it is called a second time.

    Raises:
        TypeError: Both calls returned the same parameter.
    """
    # If a parameter is not on the meta device, it existed before, or `build` made it from a NumPy
    # array. If it existed before, a second call of `build` returns the same parameter.
    if all(parameter.is_meta for parameter in module.parameters()):
        return
    with torch.device("meta"):
        kept = in_both(module, build())
    for name, parameter in kept.items():
        if not parameter.is_meta:
            raise TypeError(
                f"the parameter {name!r} existed before the network was built: make new weights at "
                "each call, and keep no layer in a global variable or in a class"
            )


def in_both(one: nn.Module, other: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that two networks share, by their names in the first network."""
    others = {id(parameter) for parameter in other.parameters()}
    return {name: each for name, each in one.named_parameters() if id(each) in others}


def uses_others(network: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Return whether a network computes with a parameter that its `parameters()` does not list.

    For example, this is a parameter of another unit, or of a layer that is in a plain list. The
    network is called in training mode with `inputs`. If it raises an exception, return False.
    """
    own = {id(parameter) for parameter in network.parameters()}
    made: Any = ()
    with suppress(Exception), torch.enable_grad():  # other checks report errors
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
