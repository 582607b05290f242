"""What the named tensors are like that units, tasks and channels pass on."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueSpec:
    """Shape (without the batch dimension) and dtype of a named tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def empty(spec: ValueSpec) -> Tensor:
    """A batch of one sample, without memory."""
    return torch.empty(1, *spec.shape, dtype=spec.dtype, device="meta")


def spec_of(tensor: Tensor) -> ValueSpec:
    """What a batch is like."""
    return ValueSpec(tuple(tensor.shape[1:]), tensor.dtype)
