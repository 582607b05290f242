"""Times steps of training on a device, and counts the memory that autograd keeps."""

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
"""Untimed steps, largest number of timed steps, and seconds after which no further step is timed.
At least three steps are timed."""

LEAST_SHARE = 0.5
"""Smallest share of the time in which the measuring thread must run. If its share is smaller, other
programs use its core, and a measured step may take a thousand times too long."""

DISTURBED: list[float] = []
"""The measuring thread's share, for each measurement that other programs disturbed in this process.

`serve` clears the list before each request."""

CUDA_WARMUP_S = 0.5
"""Seconds for which a CUDA device works before timing, because it is slow after a pause."""


class Stopwatch:
    """Measures how long a device works on one or more pieces of code.

    Call `mark` before and after each piece, and at the end `spans`. On a CPU with a single thread,
    the result is the thread's CPU time, so it does not contain the time of other programs. With
    several threads it is the elapsed time, and on CUDA the time between two events.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._now = thread_time if torch.get_num_threads() == 1 else perf_counter
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Mark the beginning or the end of a piece. On CUDA, use the current device and stream."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(self._now())

    def spans(self) -> list[float]:
        """Return the seconds of each piece: between marks 1 and 2, between marks 3 and 4, ..."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        if not self._cuda:
            return [stop - start for start, stop in pairs]
        for _, stop in pairs:  # wait for each mark: marks may be on several devices
            stop.synchronize()
        return [start.elapsed_time(stop) / 1000 for start, stop in pairs]


def repeat(step: Callable[[], list[float]], device: torch.device) -> list[float]:
    """Run a step several times after a warm-up, and return the median of each of the step's times.

    `step` returns a list of times in seconds, always of the same length. If other programs
    disturbed most steps on the CPU, this is recorded in `DISTURBED`.
    """
    least_s = CUDA_WARMUP_S if device.type == "cuda" else 0.0
    started_s, steps = perf_counter(), 0
    # On CUDA the first steps load kernels, choose algorithms and fill the allocator's cache.
    while steps < WARMUP or perf_counter() - started_s < least_s:
        step()
        steps += 1
    started_s = perf_counter()
    rows: list[list[float]] = []
    shares: list[float] = []
    while len(rows) < 3 or (len(rows) < REPETITIONS and perf_counter() - started_s < BUDGET_S):
        began_s, own_s = perf_counter(), thread_time()
        rows.append(step())
        shares.append((thread_time() - own_s) / (perf_counter() - began_s))
    by_wall_clock = device.type == "cpu" and torch.get_num_threads() > 1  # see `Stopwatch`
    if by_wall_clock and median(shares) < LEAST_SHARE:
        DISTURBED.append(median(shares))
    # Not the minimum: in a run, too, some steps are slow, because memory is allocated, or other
    # processes use the CPU's caches.
    return [median(column) for column in zip(*rows, strict=True)]


def batch_like(spec: ValueSpec, samples: int, device: torch.device) -> Tensor:
    """Make a batch [samples, *spec.shape] of random numbers in [0, 1), with the dtype of `spec`.

    Integers and booleans are zeros instead.
    """
    shape = (samples, *spec.shape)
    if not spec.differentiable:
        return torch.zeros(shape, dtype=spec.dtype, device=device)
    if spec.dtype.is_complex:
        return torch.rand(shape, dtype=spec.dtype, device=device)
    return torch.rand(shape, device=device).to(spec.dtype)  # there is no `rand` for float8


@contextmanager
def saved_storages(others: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Collect what autograd saves in the `with` block for the backward pass.

    The dictionary that it provides gets the size in bytes of each saved storage, by its address.
    Storages of `others`, for example of inputs and parameters, are left out.
    """
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # keeps the memory, so that no address is used twice
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
    """Return a network's parameters and buffers."""
    return [*network.parameters(), *network.buffers()]


def trained_and_frozen(network: nn.Module) -> dict[str, int]:
    """Return the size of a network's parameters, as a mapping with two keys.

    `params` is the number of elements of trained parameters, and `frozen_bytes` the number of bytes
    of all other parameters.
    """
    parameters = list(network.parameters())
    return {
        "params": sum(p.numel() for p in parameters if p.requires_grad),
        "frozen_bytes": sum(p.nbytes for p in parameters if not p.requires_grad),
    }


def storage(tensor: Tensor) -> tuple[int, int]:
    """Return the address and the size, in bytes, of a tensor's storage."""
    memory = tensor.untyped_storage()
    return memory.data_ptr(), memory.nbytes()


def time_criterion(
    criterion: Criterion, values: Mapping[str, Tensor], task: Task, numerics: Numerics
) -> dict[str, float]:
    """Measure time and memory of an auxiliary network, with its loss and the task's metric.

    Args:
        criterion: The auxiliary network with its loss, in training mode.
        values: A batch of the tensors that the criterion reads, on its device. The module's outputs
            among them must require gradients, as in training.
        task: The task whose metric is computed.
        numerics: Says how to compute, for example in mixed precision.

    Returns:
        A mapping with `forward_s`, `backward_s`, `saved_bytes`, `params` and `frozen_bytes`, as in
            `Measured`.
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
    times = {"forward_s": forward_s, "backward_s": backward_s}
    return {**times, "saved_bytes": sum(saved.values()), **trained_and_frozen(criterion)}
