"""Describes the named tensors that units, tasks and channels exchange: shape and dtype."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueSpec:
    """Shape (without the batch dimension) and dtype of a named tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def differentiable(self) -> bool:
        """Whether a tensor of this dtype can have a gradient."""
        return self.dtype.is_floating_point or self.dtype.is_complex


class InputSpec(Protocol):
    """Describes the tensors that a model reads; a data set's `image_spec` returns it.

    For images, use a `ppll_cli.leaves.images.ImageSpec`.
    """

    @property
    def specs(self) -> Mapping[str, ValueSpec]:
        """Shape and dtype of each tensor, by name."""


def empty(spec: ValueSpec, samples: int = 1) -> Tensor:
    """Return a batch of `samples` samples as a tensor on the meta device, which stores no data."""
    return torch.empty(samples, *spec.shape, dtype=spec.dtype, device="meta")


def spec_of(tensor: Tensor) -> ValueSpec:
    """Return the shape of a batch, without the batch dimension, and its dtype."""
    return ValueSpec(tuple(tensor.shape[1:]), tensor.dtype)


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Return strides for a dense copy of a tensor: no gaps and no overlaps between elements."""
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if channels_last or tensor.is_contiguous():
        return tuple(tensor.stride())
    return tuple(torch.empty_like(tensor, device="meta").stride())
