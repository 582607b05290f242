"""Gradients averaged over the replicas of a stage.

A chunk's gradients are laid into flat buckets. While the backward that completes them goes on, each
bucket that is complete is summed over the replicas by an all-reduce. Each replica's loss is
weighted by its share of the batch, so the sum of the gradients is that of the whole batch, as with
micro-batches.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed import Work

from ppll_cli.transport.replicas import Replicas

BUCKET_BYTES = 2**20
"""A bucket is full when it has so many: few all-reduces, and early ones."""


class _Bucket:
    """Parameters of one type, and their gradients on their way.

    Behind the gradients are numbers: for each parameter how many replicas have a gradient of it,
    and how many replicas saw a loss that is no finite number.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = 0
        self._values: Tensor | None = None
        self._work: Work | None = None

    def begin(self, replicas: Replicas, nonfinite: bool) -> None:
        """Send the gradients as they are now."""
        notes = [float(p.grad is not None) for p in self.parameters]
        pieces = [_gradient(p).reshape(-1) for p in self.parameters]
        self._values = torch.cat([*pieces, pieces[0].new_tensor([*notes, float(nonfinite)])])
        self._work = replicas.add(self._values)

    def finish(self) -> Tensor:
        """Wait for their average and make it the parameters' gradients; the number at the end."""
        assert self._work is not None
        assert self._values is not None
        self._work.wait()
        sizes = [parameter.numel() for parameter in self.parameters]
        values, notes = self._values[: sum(sizes)], self._values[sum(sizes) :]
        self._values = self._work = None
        # A parameter that no replica has used stays without a gradient; to look is to wait for a
        # device, so one looks only where it matters.
        looked = any(parameter.grad is None for parameter in self.parameters)
        counts = notes[:-1].tolist() if looked else [1.0] * len(sizes)
        parts = torch.split(values, sizes)
        for parameter, part, count in zip(self.parameters, parts, counts, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))
        return notes[-1]


class Average:
    """The average of some parameters' gradients, batch after batch.

    Buckets begin in the same order in all replicas, whatever order gradients come in: a replica may
    have none of a parameter.

    Args:
        replicas: Over which; in each of them parameters and their order are the same.
        parameters: Whose gradients; those that the backward reaches last come first.
        nonfinite: Whether this replica saw a loss that is no finite number.
        early: Buckets begin during the backward; else at its end, where they cannot get between
            what the backward itself does with the other replicas.
    """

    def __init__(
        self,
        replicas: Replicas,
        parameters: Sequence[nn.Parameter],
        nonfinite: Callable[[], bool],
        early: bool = True,
    ) -> None:
        self._replicas, self._nonfinite = replicas, nonfinite
        learnt = [parameter for parameter in parameters if parameter.requires_grad]
        once = list(dict.fromkeys(learnt))
        self._buckets = [_Bucket(each) for each in _filled(once[::-1])]
        self._begun = len(self._buckets)
        # Whose gradient would come in two parts, being a parameter of two networks, is not known.
        if early and len(once) == len(learnt):
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    hook = partial(self._come, bucket)
                    parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """The next backward completes the gradients."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._begun = 0

    def complete(self) -> None:
        """The backward has ended: what has not begun begins now. Nothing happens before `start`."""
        while self._begun < len(self._buckets):
            self._begin_next()

    def finish(self) -> bool:
        """Have the average in the parameters' gradients.

        Returns:
            Whether any replica saw a loss that is no finite number; on other devices than the CPU
            False, as to look is to wait for them.
        """
        numbers = [bucket.finish() for bucket in self._buckets]
        return any(number.device.type == "cpu" and bool(number > 0) for number in numbers)

    def _come(self, bucket: _Bucket, _: Tensor) -> None:
        """A gradient of a bucket is there."""
        bucket.missing -= 1
        while self._begun < len(self._buckets) and self._buckets[self._begun].missing <= 0:
            self._begin_next()

    def _begin_next(self) -> None:
        self._buckets[self._begun].begin(self._replicas, self._nonfinite())
        self._begun += 1


def _filled(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Buckets of them, in their order, each of one type."""
    ordered = sorted(parameters, key=lambda parameter: str(parameter.dtype))
    for _, group in groupby(ordered, key=lambda parameter: parameter.dtype):
        bucket: list[nn.Parameter] = []
        for parameter in group:
            bucket.append(parameter)
            if sum(each.nbytes for each in bucket) >= BUCKET_BYTES:
                yield bucket
                bucket = []
        if bucket:
            yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
