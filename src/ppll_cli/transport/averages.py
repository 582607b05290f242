"""Gradients averaged over the replicas of a stage.

A chunk's gradients are copied into flat buckets. While the backward that completes them goes on,
each bucket that is complete is summed over the replicas by an all-reduce. Each replica weights its
loss by its share of the batch, so the sum of the gradients is the gradient of the whole batch, as
with micro-batches.

On CUDA nothing here waits for the device, with one exception that `Average.finish` names.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn
from torch.distributed import Work

from ppll_cli.transport.replicas import Replicas

BUCKET_BYTES = 2**20
"""On the CPU a bucket is full when its gradients have so many bytes."""

CUDA_BUCKET_BYTES = 25 * 2**20
"""The same on CUDA, where to launch an all-reduce costs more than to carry 1 MiB. It is what
torch's DistributedDataParallel takes."""


class _Bucket:
    """Parameters of one type, and their gradients on their way.

    Behind the gradients stand notes, numbers that are added up with them: for each parameter how
    many replicas have a gradient of it, and how many replicas saw a loss that is no finite number.

    Gradients lie in the bucket in the memory format of their parameters, so that `_foreach_copy_`
    can copy all of them at once.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = 0
        self._work: Work | None = None
        self._sizes = [parameter.numel() for parameter in parameters]
        # A parameter that does not fill its memory, as an expanded one, lies here as a copy would.
        self._strides = [torch.empty_like(p, device="meta").stride() for p in parameters]
        self._parts: list[Tensor] = []  # where each parameter's gradient lies in the bucket
        self._notes: Tensor | None = None

    def begin(self, replicas: Replicas, nonfinite: bool) -> None:
        """Send the gradients as they are now."""
        parameters, like = self.parameters, self.parameters[0]
        values = sum(self._sizes)
        flat = torch.empty(values + len(parameters) + 1, dtype=like.dtype, device=like.device)
        starts = accumulate(self._sizes[:-1], initial=0)
        self._parts = [
            flat.as_strided(parameter.shape, strides, start)
            for parameter, strides, start in zip(parameters, self._strides, starts, strict=True)
        ]
        # To make a tensor of numbers waits for a CUDA device; to fill one does not.
        self._notes = notes = flat[values:]
        notes[:-1].fill_(1.0)
        notes[-1:].fill_(float(nonfinite))
        there = [index for index, each in enumerate(parameters) if each.grad is not None]
        _copy((self._parts[i] for i in there), (_gradient(parameters[i]) for i in there))
        for index, parameter in enumerate(parameters):
            if parameter.grad is None:
                self._parts[index].zero_()
                notes[index : index + 1].zero_()
        self._work = replicas.add(flat)

    def wait(self) -> Tensor:
        """Wait until the sums over all replicas are here; on CUDA the current stream waits.

        Returns:
            How many replicas have a gradient of each parameter, and saw a loss that is no finite
            number.
        """
        assert self._work is not None
        assert self._notes is not None
        self._work.wait()
        self._work = None
        return self._notes

    def finish(self, counts: Sequence[float] | None) -> None:
        """Make the sums the parameters' gradients.

        Args:
            counts: How many replicas have a gradient of each parameter; None where this one has all
                of them. What no replica has used stays without a gradient.
        """
        used = [i for i in range(len(self.parameters)) if counts is None or counts[i]]
        for parameter in (self.parameters[i] for i in used):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
        _copy((_gradient(self.parameters[i]) for i in used), (self._parts[i] for i in used))
        self._parts, self._notes = [], None

    @property
    def lacks(self) -> bool:
        """Whether this replica has no gradient of some parameter."""
        return any(parameter.grad is None for parameter in self.parameters)


class Average:
    """The average of some parameters' gradients, batch after batch.

    Buckets begin in the same order in all replicas, whatever order gradients come in: a replica may
    have none of a parameter. No bucket has parameters of two units: gloo's sum of three replicas or
    more depends on what a bucket holds, and schedules put other units on a stage.

    Args:
        replicas: The replicas of the stage. Parameters and their order are the same in each.
        units: The parameters of each unit, or auxiliary network; those that the backward reaches
            last come first.
        nonfinite: Whether this replica saw a loss that is no finite number.
        early: Buckets begin during the backward; else at its end, where they cannot get between
            what the backward itself does with the other replicas.
    """

    def __init__(
        self,
        replicas: Replicas,
        units: Sequence[Sequence[nn.Parameter]],
        nonfinite: Callable[[], bool],
        early: bool = True,
    ) -> None:
        self._replicas, self._nonfinite = replicas, nonfinite
        seen: set[nn.Parameter] = set()
        shared = False
        self._buckets: list[_Bucket] = []
        for unit in reversed(units):
            learnt = [parameter for parameter in unit if parameter.requires_grad]
            new = [parameter for parameter in dict.fromkeys(learnt) if parameter not in seen]
            shared = shared or len(new) < len(learnt)
            seen.update(new)
            self._buckets += [_Bucket(each) for each in _filled(new[::-1])]
        self._begun = len(self._buckets)
        self._on_cpu = all(parameter.device.type == "cpu" for parameter in seen)
        # The gradient of a parameter of two networks comes in two parts; which is the last one is
        # not known.
        if early and not shared:
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

        Where this replica lacks a gradient, it has to know whether another one has it. It reads
        that from the device, once for all buckets.

        Returns:
            Whether any replica saw a loss that is no finite number; on other devices than the CPU
            False, as to look is to wait for them.
        """
        notes = [bucket.wait() for bucket in self._buckets]
        lacking = [bucket.lacks for bucket in self._buckets]
        asked = [counts[:-1].float() for counts, lacks in zip(notes, lacking, strict=True) if lacks]
        found = iter(torch.cat(asked).tolist() if asked else ())
        for bucket, lacks in zip(self._buckets, lacking, strict=True):
            bucket.finish([next(found) for _ in bucket.parameters] if lacks else None)
        return self._on_cpu and any(bool(each[-1] > 0) for each in notes)

    def _come(self, bucket: _Bucket, _: Tensor) -> None:
        """A gradient of a bucket is there."""
        bucket.missing -= 1
        while self._begun < len(self._buckets) and self._buckets[self._begun].missing <= 0:
            self._begin_next()

    def _begin_next(self) -> None:
        self._buckets[self._begun].begin(self._replicas, self._nonfinite())
        self._begun += 1


def _filled(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Buckets of some parameters, in their order, each of one type."""
    ordered = sorted(parameters, key=lambda parameter: str(parameter.dtype))
    for _, group in groupby(ordered, key=lambda parameter: parameter.dtype):
        bucket: list[nn.Parameter] = []
        for parameter in group:
            bucket.append(parameter)
            limit = CUDA_BUCKET_BYTES if parameter.device.type == "cuda" else BUCKET_BYTES
            if sum(each.nbytes for each in bucket) >= limit:
                yield bucket
                bucket = []
        if bucket:
            yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy each source into its target; on CUDA few kernels copy all of them."""
    if into := list(targets):
        torch._foreach_copy_(into, list(sources))
