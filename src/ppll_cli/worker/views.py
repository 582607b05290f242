"""Copies tensors whose memory may change or has gaps, and detects changes in place."""

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
    """Return all tensors by name, with copies of those whose storage's address is in `memory`."""
    return {n: t.clone() if _storage(t) in memory else t for n, t in tensors.items()}


def copy_gradients(tensors: Iterable[Tensor], memory: Container[int]) -> None:
    """Replace each `.grad` by a copy if the address of its storage is in `memory`."""
    for tensor in tensors:
        if tensor.grad is not None and _storage(tensor.grad) in memory:
            tensor.grad = tensor.grad.clone()


@contextmanager
def unchanged(tensors: Mapping[str, Tensor], code: str) -> Iterator[None]:
    """Raise an error if the `with` body changes one of the tensors in place.

    Other modules on this stage read the same tensors; modules on other stages read copies. So a
    change would make results depend on the modules' stages. The error calls the body `code`.

    Raises:
        RuntimeError: A tensor was changed.
    """
    before = {name: tensor._version for name, tensor in tensors.items()}
    yield
    if changed := [name for name, version in before.items() if tensors[name]._version != version]:
        raise RuntimeError(
            f"{code} changes {changed[0]!r} in place, which other modules may read: make a new "
            "tensor"
        )


def without_aliases(made: Mapping[str, Tensor], held: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return a unit's outputs by name; a tensor that already has another name becomes a view.

    A unit may return an input (a tensor in `held`), or one tensor under two names. The views keep
    the rounding of gradients independent of the cuts: autograd sums the gradients of each name
    separately, and then adds these sums, as if the outputs were sent to another stage. Tensors that
    need no gradient get no view.
    """
    taken, found = {id(tensor) for tensor in held}, {}
    for name, tensor in made.items():
        again = id(tensor) in taken and tensor.requires_grad
        found[name] = tensor.view_as(tensor) if again else tensor
        taken.add(id(tensor))
    return found


def as_received(output: Tensor, gradient: bool) -> Tensor:
    """Return a unit's output with the strides that it would have in a slot.

    In a slot, the elements of a tensor lie without gaps and overlaps. Kernels may round differently
    for other strides, so the strides must not depend on whether the output is sent. If `gradient`
    is true, the output's gradient gets these strides too, because it may be sent.
    """
    strides = dense_strides(output)
    if output.stride() != strides:
        output = output.clone()
    if gradient and output.requires_grad and not output.is_leaf:
        output.register_hook(partial(_with_strides, strides))  # type: ignore[no-untyped-call]
    return output


def _with_strides(strides: tuple[int, ...], gradient: Tensor | None) -> Tensor | None:
    """Return a copy of the gradient with the given strides; None if no copy is needed.

    torch passes no gradient (None) if only other outputs of the same operation have gradients.
    """
    if gradient is None:
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
