"""What the replicas of a stage do together: collective operations of torch.distributed."""

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

from ppll_cli.transport.groups import Groups, ProcessGroup


class Replicas:
    """The replicas of a stage, as one of them sees them.

    All of them make the same operations in the same order, once the groups are open.

    Args:
        groups: The run's.
        name: Of their group.
    """

    def __init__(self, groups: Groups, name: str) -> None:
        self._groups, self._name = groups, name

    @property
    def _group(self) -> ProcessGroup:
        return self._groups.of(self._name)

    @property
    def _ranks(self) -> Sequence[int]:
        return self._groups.ranks(self._name)

    def add(self, tensor: Tensor) -> dist.Work:
        """Begin to put the sum over all replicas into a tensor, which has the same shape in each.

        Returns:
            What can be waited for. On CUDA the current stream waits.
        """
        work = dist.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None
        return work

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Have what the first replica has in these tensors: one broadcast for each type of them."""
        ordered = sorted(tensors, key=lambda tensor: str(tensor.dtype))
        for _, same in groupby(ordered, key=lambda tensor: tensor.dtype):
            group = list(same)
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.broadcast(flat, self._ranks[0], group=self._group)
            parts = torch.split(flat, [tensor.numel() for tensor in group])
            views = [part.view(each.shape) for part, each in zip(parts, group, strict=True)]
            torch._foreach_copy_(group, views)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all replicas, those of the first one first.

        Args:
            rows: [N, C], where N may be another in each replica, and C too where N is 0.
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
