"""Copies tensors if their memory may change before they are read, or if they have gaps.

Also raises an error if code changes tensors that it must not change.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ppll_cli.leaves.values import dense_strides


def storages(tensors: Iterable[Tensor]) -> set[int]:
    """Return the addresses of the tensors' memory."""
    return {_storage(tensor) for tensor in tensors}


def copy_shared(tensors: Mapping[str, Tensor], memory: Container[int]) -> dict[str, Tensor]:
    """Return the tensors by name; copy each tensor whose memory address is in `memory`."""
    return {n: t.clone() if _storage(t) in memory else t for n, t in tensors.items()}


def copy_gradients(tensors: Iterable[Tensor], memory: Container[int]) -> None:
    """Replace a tensor's gradient by a copy if the gradient's memory address is in `memory`."""
    for tensor in tensors:
        if tensor.grad is not None and _storage(tensor.grad) in memory:
            tensor.grad = tensor.grad.clone()


@contextmanager
def unchanged(tensors: Mapping[str, Tensor], code: str) -> Iterator[None]:
    """Raise an error if the body changes one of the tensors in place.

    `code` describes in the error message what the body runs. Other modules on the stage may read
    the same tensors, while modules on other stages have copies. So a change would make the results
    depend on the stages.

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
    """Return a unit's outputs by name, so that no tensor that needs a gradient has two names.

    If such an output is also one of the tensors in `held`, or an earlier output, it is replaced by
    a view. Without the view, autograd would add the gradients of both names in the order in which
    it computes them. If the output is sent to another stage, each name arrives as a separate
    tensor: autograd first adds the gradients of each name, and then the two sums. Different orders
        of addition would round differently.
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
    is true, the output's gradient gets these strides too, because the schedule may send it.
    """
    strides = dense_strides(output)
    if output.stride() != strides:
        output = output.clone()
    if gradient and output.requires_grad and not output.is_leaf:
        output.register_hook(partial(_with_strides, strides))  # type: ignore[no-untyped-call]
    return output


def _with_strides(strides: tuple[int, ...], gradient: Tensor | None) -> Tensor | None:
    """Return a copy of the gradient with the given strides; None if the gradient has them already.

    Torch calls this with None for an output that has no gradient, if another output of the same
    operation has one.
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
