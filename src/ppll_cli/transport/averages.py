"""Averages gradients over the replicas of a stage.

Gradients are copied into flat tensors, called buckets. When the gradients of a bucket are complete,
an all-reduce sums the bucket over the replicas, while the backward continues. Each replica weights
its loss by its share of the batch, so this sum is the gradient of the whole batch.

With NCCL the host waits for the device in only one case; see `Average.finish`. With gloo, which
replicas use on the CPU or on a shared device, the host waits for every sum.
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
    """Parameters of one dtype, and the flat tensor in which an all-reduce sums their gradients.

    The flat tensor ends with counts, which the same all-reduce sums: for each parameter, the number
    of replicas that have a gradient for it; then the number of replicas with a loss that is not
    finite. In the flat tensor, each gradient has the strides of its parameter, so that one call of
    `_foreach_copy_` can copy all gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = 0  # number of gradients that are not complete yet
        self._work: Work | None = None
        self._sizes = [parameter.numel() for parameter in parameters]
        # An expanded parameter has gaps or overlaps between elements; the bucket must have none.
        self._strides = [torch.empty_like(p, device="meta").stride() for p in parameters]
        self._parts: list[Tensor] = []  # for each parameter, its view of the flat tensor
        self._counts: Tensor | None = None

    def begin(self, replicas: Replicas, nonfinite: bool) -> None:
        """Start the all-reduce; `nonfinite` says whether a loss of this replica is not finite."""
        parameters, like = self.parameters, self.parameters[0]
        values = sum(self._sizes)
        flat = torch.empty(values + len(parameters) + 1, dtype=like.dtype, device=like.device)
        starts = accumulate(self._sizes[:-1], initial=0)
        self._parts = [
            flat.as_strided(parameter.shape, strides, start)
            for parameter, strides, start in zip(parameters, self._strides, starts, strict=True)
        ]
        # Filling a CUDA tensor does not make the host wait; creating a tensor from numbers does.
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
        """Wait for the sums (with NCCL, only the current stream waits), and return the counts."""
        assert self._work is not None
        assert self._counts is not None
        self._work.wait()
        self._work = None
        return self._counts

    def finish(self, counts: Sequence[float] | None) -> None:
        """Copy the sums into the parameters' gradients.

        `counts` has, for each parameter, the number of replicas with a gradient for it. If this is
        0, the parameter's gradient stays None. `counts` may be None if no gradient is missing.
        """
        used = [i for i in range(len(self.parameters)) if counts is None or counts[i]]
        for parameter in (self.parameters[i] for i in used):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
        _copy((_gradient(self.parameters[i]) for i in used), (self._parts[i] for i in used))
        self._parts, self._counts = [], None

    @property
    def lacks(self) -> bool:
        """Whether any parameter has no gradient in this replica."""
        return any(parameter.grad is None for parameter in self.parameters)


class Average:
    """Averages the gradients of some parameters over the replicas, in every batch.

    All replicas start the all-reduces in one fixed order, even if gradients are missing. With three
    or more replicas, gloo's rounding depends on the contents of a bucket. A bucket then has
    parameters of only one unit, because results must not depend on which units a stage has.

    `units` has the parameters of each unit or auxiliary network, in the order of the forward.
    `nonfinite` returns whether this replica had a loss that is not finite. With `early`,
    all-reduces start during the backward. Without it, they start after the backward, so that they
    do not mix with the all-reduces of synchronized BatchNorm layers.
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
        if replicas.count == 2:
            new = [[*chain.from_iterable(new)]]  # a bucket may hold parameters of several units
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
        """Prepare the buckets. Call this before the backward that completes the gradients."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._begun = 0

    def complete(self) -> None:
        """Start the all-reduces that `start` prepared and the backward has not started."""
        while self._begun < len(self._buckets):
            self._begin_next()

    def finish(self) -> bool:
        """Wait for all sums, and put them into the parameters' gradients.

        If this replica lacks a gradient, the host waits for the device, and reads how many replicas
        have the gradient.

        Returns:
            On the CPU, whether any replica had a loss that is not finite. On CUDA always False:
            to read how many losses were not finite, the host would have to wait for the device.
        """
        counts = [bucket.wait() for bucket in self._buckets]
        lacking = [bucket.lacks for bucket in self._buckets]
        asked = [each[:-1].float() for each, lacks in zip(counts, lacking, strict=True) if lacks]
        found = iter(torch.cat(asked).tolist() if asked else ())
        for bucket, lacks in zip(self._buckets, lacking, strict=True):
            bucket.finish([next(found) for _ in bucket.parameters] if lacks else None)
        return self._on_cpu and any(bool(each[-1] > 0) for each in counts)

    def _count_gradient(self, bucket: _Bucket, _: Tensor) -> None:
        """Count a complete gradient; start the next all-reduces if their buckets are complete."""
        bucket.missing -= 1
        while self._begun < len(self._buckets) and self._buckets[self._begun].missing <= 0:
            self._begin_next()

    def _begin_next(self) -> None:
        self._buckets[self._begun].begin(self._replicas, self._nonfinite())
        self._begun += 1


def _in_buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters of each bucket, in order; all parameters of a bucket have one dtype."""
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
