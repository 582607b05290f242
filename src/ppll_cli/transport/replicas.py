"""Collective operations between the replicas of a stage, by torch.distributed."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from ppll_cli.transport.groups import Groups, ProcessGroup


class Replicas:
    """Communication of one replica with the other replicas of its stage.

    All replicas must call the same methods in the same order.

    Args:
        groups: The process groups of the run. Call `groups.open` before any method of this class.
        name: Name of the process group that contains the replicas of this stage.
    """

    def __init__(self, groups: Groups, name: str) -> None:
        self._groups, self._name, self._ranks = groups, name, groups.ranks(name)

    @property
    def _group(self) -> ProcessGroup:
        return self._groups.of(self._name)

    @property
    def count(self) -> int:
        """Number of replicas of the stage."""
        return len(self._ranks)

    def add(self, tensor: Tensor) -> dist.Work:
        """Start an all-reduce that replaces a tensor by the sum over all replicas.

        The tensor must have the same shape and dtype in each replica. Call `wait` of the result
        before you use the sum; with NCCL, only the current stream waits.
        """
        work = dist.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None
        return work

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the values that they have in the first replica.

        All tensors must be on one device. All replicas must pass tensors of the same shapes and
        dtypes, in the same order.
        """
        # gloo cannot send every dtype, so this sends bytes. Tensors with larger elements come
        # first, so that each part begins at a multiple of the size of its elements.
        own = sorted(map(_distinct, tensors), key=Tensor.element_size, reverse=True)
        if not own:
            return
        sizes = [tensor.nbytes for tensor in own]
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=own[0].device)
        parts = zip(torch.split(flat, sizes), own, strict=True)
        views = [part.view(tensor.dtype).view(tensor.shape) for part, tensor in parts]
        torch._foreach_copy_(views, own)
        dist.broadcast(flat, self._ranks[0], group=self._group)
        torch._foreach_copy_(own, views)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all replicas, in the order of the replicas.

        Args:
            rows: Tensor [N, C]. Its dtype must be the same in all replicas. Replicas may have
                different N, but all replicas with rows must have the same C.

        Returns:
            Tensor [sum of N, C].
        """
        shape = torch.tensor(rows.shape, device=rows.device)
        shapes = [torch.empty_like(shape) for _ in self._ranks]
        dist.all_gather(shapes, shape, group=self._group)
        counts, widths = zip(*torch.stack(shapes).tolist(), strict=True)
        padded = rows.new_zeros(max(counts), max(widths))
        if len(rows):
            padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in self._ranks]
        dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _distinct(tensor: Tensor) -> Tensor:
    # torch cannot write into an expanded tensor, so leave out its repeated elements.
    return tensor[tuple(slice(None) if stride else slice(1) for stride in tensor.stride())]
