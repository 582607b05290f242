"""Describes the named tensors that units, tasks and channels exchange: shape and dtype."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueSpec:
    """Shape (without the batch dimension) and dtype of a named tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def empty(spec: ValueSpec) -> Tensor:
    """Return a tensor of one sample on the meta device, which stores no data."""
    return torch.empty(1, *spec.shape, dtype=spec.dtype, device="meta")


def spec_of(tensor: Tensor) -> ValueSpec:
    """Return the spec of a batch: its shape without the batch dimension, and its dtype."""
    return ValueSpec(tuple(tensor.shape[1:]), tensor.dtype)
