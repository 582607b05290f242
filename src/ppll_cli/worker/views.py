"""Copies tensors whose memory may change or has gaps, and detects in-place changes of tensors."""

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ppll_cli.leaves.values import dense_strides


def storages(tensors: Iterable[Tensor]) -> set[int]:
    """Return the addresses of the tensors' storages. Views of one tensor have the same address."""
    return {_storage(tensor) for tensor in tensors}


def copy_shared(tensors: Mapping[str, Tensor], memory: Container[int]) -> dict[str, Tensor]:
    """Copy the tensors that lie in memory that may change. Return all tensors, by name.

    `memory` has the addresses of this memory (see `storages`).
    """
    return {n: t.clone() if _storage(t) in memory else t for n, t in tensors.items()}


def copy_gradients(tensors: Iterable[Tensor], memory: Container[int]) -> None:
    """Copy each gradient (`.grad`) that lies in memory that may change.

    `memory` has the addresses of this memory (see `storages`).
    """
    for tensor in tensors:
        if tensor.grad is not None and _storage(tensor.grad) in memory:
            tensor.grad = tensor.grad.clone()


@contextmanager
def unchanged(tensors: Mapping[str, Tensor], code: str) -> Iterator[None]:
    """Raise an error if the body of the `with` statement changes one of the tensors in place.

    Modules on this stage would see the change, but modules on other stages read copies. The error
    message calls the body `code`.

    Raises:
        RuntimeError: A tensor was changed.
    """
    before = {name: tensor._version for name, tensor in tensors.items()}
    yield
    if changed := [name for name, version in before.items() if tensors[name]._version != version]:
        raise RuntimeError(
            f"{code} changes {changed[0]!r} in place, but other modules may read this tensor: make "
            "a new tensor instead"
        )


def without_aliases(made: Mapping[str, Tensor], held: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return a unit's outputs by name, with a view of each tensor that already has a name.

    A unit may return one of its inputs, or one tensor under two names. Tensors that need no
    gradient are returned as they are.

    Args:
        made: The unit's outputs, by name.
        held: The tensors that had a name before, such as the unit's inputs.
    """
    # With views, autograd sums the gradients of each name separately, and then adds these sums. It
    # does the same if the outputs are sent to another stage, so rounding does not depend on cuts.
    taken, found = {id(tensor) for tensor in held}, {}
    for name, tensor in made.items():
        again = id(tensor) in taken and tensor.requires_grad
        found[name] = tensor.view_as(tensor) if again else tensor
        taken.add(id(tensor))
    return found


def as_received(output: Tensor, gradient: bool) -> Tensor:
    """Return a unit's output with the strides that it would have in a slot: without gaps.

    Kernels may round differently for other strides, so the strides of a tensor must not depend on
    whether it is sent. `gradient` says whether gradients are sent too. Then the output's gradient
    gets these strides as well.
    """
    strides = dense_strides(output)
    if output.stride() != strides:
        output = output.clone()
    if gradient and output.requires_grad and not output.is_leaf:
        output.register_hook(partial(_with_strides, strides))  # type: ignore[no-untyped-call]
    return output


def _with_strides(strides: tuple[int, ...], gradient: Tensor | None) -> Tensor | None:
    if gradient is None:  # only other outputs of the same operation have gradients
        return None
    pairs = zip(gradient.shape, gradient.stride(), strides, strict=True)
    if all(has == wanted or size == 1 for size, has, wanted in pairs):
        return None
    like = torch.empty_strided(
        gradient.shape, strides, dtype=gradient.dtype, device=gradient.device
    )
    return like.copy_(gradient)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
