"""Finds tensors that share memory with a slot, and copies them before the slot is reused."""

from collections.abc import Container, Iterable, Mapping

from torch import Tensor


def storages(tensors: Iterable[Tensor]) -> set[int]:
    """Return the addresses of the tensors' memory."""
    return {_storage(tensor) for tensor in tensors}


def apart(tensors: Mapping[str, Tensor], memory: Container[int]) -> dict[str, Tensor]:
    """Return the tensors by name; copy each tensor whose memory address is in `memory`."""
    return {n: t.clone() if _storage(t) in memory else t for n, t in tensors.items()}


def own_gradients(tensors: Iterable[Tensor], memory: Container[int]) -> None:
    """Copy each tensor's gradient whose memory address is in `memory`."""
    for tensor in tensors:
        if tensor.grad is not None and _storage(tensor.grad) in memory:
            tensor.grad = tensor.grad.clone()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
