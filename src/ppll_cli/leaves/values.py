"""The form of the named tensors that units, tasks and channels pass on."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueSpec:
    """Shape (without the batch dimension) and dtype of a named tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def empty(spec: ValueSpec) -> Tensor:
    """Return a batch of one sample on the meta device, which holds no data."""
    return torch.empty(1, *spec.shape, dtype=spec.dtype, device="meta")


def spec_of(tensor: Tensor) -> ValueSpec:
    """Return the spec of one sample of a batch."""
    return ValueSpec(tuple(tensor.shape[1:]), tensor.dtype)
