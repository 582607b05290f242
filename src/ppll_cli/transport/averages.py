"""Averages gradients over the replicas of a stage.

Gradients are copied into flat tensors, called buckets. When the gradients of a bucket are complete,
an all-reduce sums the bucket over the replicas, while the backward continues. Each replica weights
its loss by its share of the batch, so this sum is the gradient of the whole batch.

With NCCL the host waits for the device only if a parameter has no gradient in this replica. With
gloo, which replicas use on the CPU or on a shared device, the host waits for every sum.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, chain, groupby

import torch
from torch import Tensor, nn
from torch.distributed import Work

from ppll_cli.transport.replicas import Replicas

BUCKET_BYTES = 2**20
"""Size in bytes at which a bucket of gradients on the CPU is full."""

CUDA_BUCKET_BYTES = 25 * 2**20
"""Size in bytes at which a bucket on CUDA is full, as in torch's DistributedDataParallel. Launching
an all-reduce on CUDA costs more time than transferring 1 MiB."""


class _Bucket:
    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters  # all of one dtype
        self.missing = 0  # number of gradients that are not complete yet
        self._work: Work | None = None
        self._sizes = [parameter.numel() for parameter in parameters]
        # A gradient has its parameter's strides in the bucket, so that one `_foreach_copy_` can
        # copy all. But an expanded parameter has gaps or overlaps; the bucket must have none.
        self._strides = [torch.empty_like(p, device="meta").stride() for p in parameters]
        self._parts: list[Tensor] = []  # for each parameter, its view of the flat tensor
        self._counts: Tensor | None = None

    def begin(self, replicas: Replicas, nonfinite: bool) -> None:
        parameters, like = self.parameters, self.parameters[0]
        values = sum(self._sizes)
        flat = torch.empty(values + len(parameters) + 1, dtype=like.dtype, device=like.device)
        starts = accumulate(self._sizes[:-1], initial=0)
        self._parts = [
            flat.as_strided(parameter.shape, strides, start)
            for parameter, strides, start in zip(parameters, self._strides, starts, strict=True)
        ]
        # After the gradients come counts, which the all-reduce sums too: for each parameter, the
        # number of replicas that have its gradient; at the end, the number of replicas with a loss
        # that is not finite. Filling a CUDA tensor does not make the host wait; creating a tensor
        # from numbers does.
        self._counts = counts = flat[values:]
        counts[:-1].fill_(1.0)
        counts[-1:].fill_(float(nonfinite))
        there = [index for index, each in enumerate(parameters) if each.grad is not None]
        _copy((self._parts[i] for i in there), (_gradient(parameters[i]) for i in there))
        for index, parameter in enumerate(parameters):
            if parameter.grad is None:
                self._parts[index].zero_()
                counts[index : index + 1].zero_()
        self._work = replicas.add(flat)

    def wait(self) -> Tensor:
        assert self._work is not None
        assert self._counts is not None
        self._work.wait()  # with NCCL, only the current stream waits
        self._work = None
        return self._counts

    def finish(self, counts: Sequence[float] | None) -> None:
        # Without counts, no gradient is missing. A gradient that all replicas lack stays None.
        used = [i for i in range(len(self.parameters)) if counts is None or counts[i]]
        for parameter in (self.parameters[i] for i in used):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
        _copy((_gradient(self.parameters[i]) for i in used), (self._parts[i] for i in used))
        self._parts, self._counts = [], None

    @property
    def lacks(self) -> bool:
        return any(parameter.grad is None for parameter in self.parameters)


class Average:
    """Averages gradients over the replicas of a stage.

    In each batch, call `start` before the last backward, `complete` after it, and then `finish`.

    Args:
        replicas: The replicas of the stage.
        units: The parameters of each unit and auxiliary network, in the order of the forward.
        nonfinite: Returns whether this replica had a loss that is not finite.
        early: Whether all-reduces start during the backward. If not, they start after it, so that
            they do not mix with the all-reduces of synchronized BatchNorm layers.
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
        new: list[list[nn.Parameter]] = []  # parameters by unit, in the order of the backward
        for unit in reversed(units):
            learnt = [parameter for parameter in unit if parameter.requires_grad]
            new.append([p for p in reversed(dict.fromkeys(learnt)) if p not in seen])
            shared = shared or len(new[-1]) < len(learnt)
            seen.update(new[-1])
        # With three or more replicas, gloo's rounding depends on the contents of a bucket. Then
        # no bucket mixes parameters of several units, because results must not depend on which
        # units a stage has.
        if replicas.count == 2:
            new = [[*chain.from_iterable(new)]]
        self._buckets = [_Bucket(each) for own in new for each in _in_buckets(own)]
        self._begun = len(self._buckets)  # number of buckets whose all-reduce has started
        self._on_cpu = all(parameter.device.type == "cpu" for parameter in seen)
        # A parameter that several units share gets several gradients, and a hook cannot know which
        # gradient is the last.
        if early and not shared:
            for bucket in self._buckets:
                for parameter in bucket.parameters:
                    hook = partial(self._count_gradient, bucket)
                    parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Prepare to average the gradients that the next backward completes."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._begun = 0

    def complete(self) -> None:
        """Start the all-reduces that the backward has not started; do nothing without `start`."""
        while self._begun < len(self._buckets):
            self._begin_next()

    def finish(self) -> bool:
        """Wait for the all-reduces, and write the averages into the parameters' gradients.

        Returns:
            On the CPU, whether any replica had a loss that is not finite. On CUDA always False,
            because the host would have to wait for the device.
        """
        counts = [bucket.wait() for bucket in self._buckets]
        lacking = [bucket.lacks for bucket in self._buckets]
        # Reading counts makes the host wait for the device, so they are read only for buckets that
        # lack a gradient.
        asked = [each[:-1].float() for each, lacks in zip(counts, lacking, strict=True) if lacks]
        found = iter(torch.cat(asked).tolist() if asked else ())
        for bucket, lacks in zip(self._buckets, lacking, strict=True):
            bucket.finish([next(found) for _ in bucket.parameters] if lacks else None)
        return self._on_cpu and any(bool(each[-1] > 0) for each in counts)

    def _count_gradient(self, bucket: _Bucket, _: Tensor) -> None:
        bucket.missing -= 1
        # All replicas must start the all-reduces in the same order, even if gradients are missing.
        while self._begun < len(self._buckets) and self._buckets[self._begun].missing <= 0:
            self._begin_next()

    def _begin_next(self) -> None:
        self._buckets[self._begun].begin(self._replicas, self._nonfinite())
        self._begun += 1


def _in_buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
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
    if into := list(targets):  # one call for all tensors, which needs few kernels on CUDA
        torch._foreach_copy_(into, list(sources))
