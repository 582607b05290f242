"""Timing a piece of training on a device, and counting what it leaves in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor, nn

from ppll_cli.job.numerics import Numerics
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Criterion
from ppll_cli.tasks.task import Task

WARMUP, REPETITIONS, BUDGET_S = 2, 12, 4.0
"""Of what is timed: how often it runs before that, how often it is timed unless that takes longer
than the budget, and then three times at least."""

CUDA_WARMUP_S = 0.5
"""A CUDA device that was idle computes slowly at first: it is kept busy for so long before."""


class Stopwatch:
    """Times at which a device comes past marks; reading them waits for it.

    A CUDA mark is on the current device's current stream, so it times what is queued there.

    A single CPU thread never waits here, so its own time counts: what other programs take from its
    core in the meantime does not, for it says nothing about a run.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._now = thread_time if torch.get_num_threads() == 1 else perf_counter
        self._marks: list[Any] = []

    def mark(self) -> None:
        """A mark, behind all that the device was given so far."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(self._now())

    def spans(self) -> list[float]:
        """Seconds between the first and the second mark, the third and the fourth, and so on."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if not self._cuda:
            return [stop - start for start, stop in pairs]
        for _, stop in pairs:  # they may be of several devices
            stop.synchronize()
        return [start.elapsed_time(stop) / 1000 for start, stop in pairs]


def repeat(step: Callable[[], list[float]], device: torch.device) -> list[float]:
    """The median of each time that a step returns, after a warm-up.

    On CUDA the first steps load kernels, choose algorithms and fill the allocator's cache. A step
    returns once the device has done it, so the warm-up is over when the timing begins.

    The median and not the least: a run lasts as long as its steps take on the average, and what is
    slow about some of them (memory that is taken anew, a neighbour's cache) is slow in a run too.
    """
    least_s = CUDA_WARMUP_S if device.type == "cuda" else 0.0
    started_s, steps = perf_counter(), 0
    while steps < WARMUP or perf_counter() - started_s < least_s:
        step()
        steps += 1
    started_s = perf_counter()
    rows: list[list[float]] = []
    while len(rows) < 3 or (len(rows) < REPETITIONS and perf_counter() - started_s < BUDGET_S):
        rows.append(step())
    return [median(column) for column in zip(*rows, strict=True)]


def batch_like(spec: ValueSpec, samples: int, device: torch.device) -> Tensor:
    """Random numbers, or of an integer type zeros, as a batch."""
    shape = (samples, *spec.shape)
    if not spec.dtype.is_floating_point:
        return torch.zeros(shape, dtype=spec.dtype, device=device)
    return torch.rand(shape, dtype=spec.dtype, device=device)


@contextmanager
def saved_storages(others: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Address and bytes of each storage that autograd saves meanwhile; not those of `others`."""
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # or an address might be used twice
    known = dict(map(storage, others))

    def pack(tensor: Tensor) -> Tensor:
        address, size = storage(tensor)
        if address not in known:
            found[address] = size
            kept.append(tensor.detach())
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def held(network: nn.Module) -> list[Tensor]:
    """What a network has in memory at all times."""
    return [*network.parameters(), *network.buffers()]


def storage(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of the memory in which a tensor stands."""
    memory = tensor.untyped_storage()
    return memory.data_ptr(), memory.nbytes()


def time_criterion(
    criterion: Criterion, values: Mapping[str, Tensor], task: Task, numerics: Numerics
) -> dict[str, float]:
    """What an auxiliary network and its loss cost, the measuring of the metric included.

    Args:
        criterion: On the device, in training.
        values: What it reads; with gradients where the module has made them.
        task: Says what is measured.
        numerics: How to compute.

    Returns:
        `forward_s`, `backward_s`, `saved_bytes` and `params`.
    """
    device = next(iter(values.values())).device
    parameters = list(criterion.parameters())

    def loss_of() -> Tensor:
        with numerics.autocast(device):
            loss, prediction = criterion(values)
            with torch.no_grad():
                task.measure(prediction, values, training=True)
        assert isinstance(loss, Tensor)
        return loss

    def step() -> list[float]:
        watch = Stopwatch(device)
        watch.mark()
        loss = loss_of()
        watch.mark()
        watch.mark()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        watch.mark()
        for tensor in (*parameters, *values.values()):
            tensor.grad = None
        return watch.spans()

    with saved_storages([*values.values(), *held(criterion)]) as saved:
        loss_of()
    forward_s, backward_s = repeat(step, device)
    return {
        "forward_s": forward_s,
        "backward_s": backward_s,
        "saved_bytes": sum(saved.values()),
        "params": sum(parameter.numel() for parameter in parameters),
    }
