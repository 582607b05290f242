"""The slots of a channel, and the layout of a message's tensors in a slot."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ppll_cli.leaves.values import dense_strides
from ppll_cli.transport.channel import aligned
from ppll_cli.transport.memory import Memory


class TensorForm(NamedTuple):
    """Name, dtype, shape and strides (in elements) of a tensor in a slot."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


Layout = tuple[TensorForm, ...]
"""The forms of a message's tensors, in the order of their memory in a slot."""


class Slots:
    """The slots of a channel, as one end of the channel uses them.

    Args:
        memory: The memory of all slots.
        count: Number of slots.
        size: Size of a slot in bytes.
    """

    def __init__(self, memory: Memory, count: int, size: int) -> None:
        self.memory, self.count, self.size = memory, count, size
        self._next = 0
        self._views: dict[tuple[int, Layout], dict[str, Tensor]] = {}

    def next(self, layout: Layout) -> tuple[int, dict[str, Tensor]]:
        """Return the index of the next slot, and views of its memory, one for each tensor.

        The slots are used in turn. After the last slot, slot 0 is the next.

        Raises:
            ValueError: The tensors do not fit into a slot.
        """
        slot, self._next = self._next, (self._next + 1) % self.count
        return slot, self.at(slot, layout)

    def at(self, slot: int, layout: Layout) -> dict[str, Tensor]:
        """Return views of a slot's memory, one for each tensor of a layout.

        Raises:
            ValueError: The tensors do not fit into a slot.
        """
        views = self._views.get((slot, layout))
        if views is None:
            self.check_room(layout)
            views = self._views[slot, layout] = self._lay_out(slot * self.size, layout)
        return views

    def _lay_out(self, start: int, layout: Layout) -> dict[str, Tensor]:
        memory = self.memory.tensor
        assert memory is not None
        views = {}
        for name, dtype, shape, stride in layout:
            view: Tensor = torch.empty(0, dtype=dtype, device=memory.device)
            views[name] = view.set_(
                memory.untyped_storage(), start // dtype.itemsize, shape, stride
            )
            start += aligned(view.nbytes)
        return views

    def check_room(self, layout: Layout) -> None:
        """Raise ValueError if the tensors of a layout do not fit into a slot."""
        size = layout_bytes(layout)
        if size > self.size:
            shapes = {tensor.name: list(tensor.shape) for tensor in layout}
            raise ValueError(f"tensors {shapes} take {size} bytes, but a slot has {self.size}")


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout that copies of these tensors have in a slot."""
    return tuple(
        TensorForm(name, tensor.dtype, tuple(tensor.shape), dense_strides(tensor))
        for name, tensor in tensors.items()
    )


def layout_bytes(layout: Layout) -> int:
    """Return the number of bytes of a slot that a layout needs."""
    return sum(aligned(prod(tensor.shape) * tensor.dtype.itemsize) for tensor in layout)
