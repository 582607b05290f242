"""Copies metrics from a stage's device to the host, and sends them to the parent."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ppll_cli.errors import NonFiniteError
from ppll_cli.job.optimizer import warn_of_skipped
from ppll_cli.tasks.task import Task, scored
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.clock import Clock
from ppll_cli.worker.sums import Sums, split_of


@dataclass(frozen=True)
class _Measured:
    """Measurements of one module. The tensors are valid after their copy to the host is done.

    Attributes:
        loss: Sum of the losses of all samples, a scalar.
        rows: Results of the task's `measure`, [n, columns], for each prediction by name. The main
            prediction has the name ""; the criterion may make others.
        squared_norm: Squared gradient norm at the last step, a scalar; None if not computed.
        skipped_steps: Numbers of the steps since the last report that may have been skipped.
        skipped: For each of these steps, 1 if it was skipped, else 0.
    """

    module: int
    loss: Tensor
    samples: Tensor
    rows: Mapping[str, Tensor]
    squared_norm: Tensor | None
    skipped_steps: Sequence[int]
    skipped: Tensor


@dataclass(frozen=True)
class _Pending:
    """A report whose tensors are being copied to the host.

    Attributes:
        step: Number of optimizer steps done.
        epoch: Number of epochs begun.
        rate: Learning rate of the last step; None in evaluation.
        complete: False if the next report of the split will contain these batches too.
        spans: Start and end of each period in which the worker computed the batches.
        before_s: Seconds of the periods that were already added up, and so are not in `spans`.
        copied: The moment when all tensors are on the host.
    """

    split: str
    step: int
    epoch: int
    rate: float | None
    complete: bool
    modules: Sequence[_Measured]
    spans: Sequence[tuple[Any, Any]]
    before_s: float
    copied: Any


class Reports:
    """Copies measurements to the host, and then sends them to the parent in order.

    The worker calls `send` after each step. `send` leaves out reports whose copies are not done,
    because waiting for a copy would leave a CUDA device without work.

    The measurements are summed over the replicas.

    Args:
        stop: Whether a training loss that is not finite ends the run.
        tell: Sends a report to the parent. Only the first replica of a stage sends reports; in
            other replicas this is None.
        show_progress: Called before scores are computed; shows the parent that this worker does not
            hang.
    """

    def __init__(
        self,
        clock: Clock,
        task: Task,
        chunks: Iterable[HeldChunk],
        replicas: Replicas | None,
        stop: bool,
        tell: Callable[..., None] | None,
        show_progress: Callable[[], None],
    ) -> None:
        self._clock, self._task, self._stop = clock, task, stop
        self._chunks = [chunk for chunk in chunks if chunk.criterion is not None]
        self._replicas = replicas
        self._tell, self._show_progress = tell, show_progress
        self._since: dict[str, Any] = {}
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._before_s: dict[str, float] = defaultdict(float)
        self._pending: deque[_Pending] = deque()

    def begin(self, split: str) -> None:
        """Start to count time for a split. Do nothing if it is already being counted."""
        if split not in self._since:
            self._since[split] = self._clock.mark()

    def pause(self, split: str) -> None:
        """Stop counting time for a split."""
        if (since := self._since.pop(split, None)) is not None:
            self._spans[split].append((since, self._clock.mark()))

    def take(
        self,
        split: str,
        step: int,
        epoch: int,
        *,
        rate: float | None = None,
        complete: bool = True,
    ) -> None:
        """Begin a report: start to copy a split's measurements to the host.

        The report has the measurements since the split's last complete report. `complete` is False
        for the last report of a run that ends between two regular reports. This run may be resumed,
        so the measurements are kept, and the next report contains them too. `_Pending` explains the
        other arguments.
        """
        modules = []
        for chunk in self._chunks:
            assert chunk.criterion is not None
            names = () if split == "train" else chunk.criterion.further
            keys = {name: split_of(split, name) for name in ("", *names)}
            sums = {name: self._sums(chunk, key) for name, key in keys.items()}
            modules.append(_copied(chunk, sums))
            if complete:
                for key in keys.values():
                    chunk.sums.pop(key, None)
        copied = self._clock.mark()
        spans, before_s = self._spans.pop(split, []), self._before_s.pop(split, 0.0)
        if (since := self._since.pop(split, None)) is not None:
            spans.append((since, copied))
        if not complete:
            self._spans[split], self._before_s[split] = [*spans], before_s
        pending = _Pending(split, step, epoch, rate, complete, modules, spans, before_s, copied)
        self._pending.append(pending)

    def send(self, wait: bool = False) -> None:
        """Send the reports whose tensors are on the host; if `wait` is true, wait for them all.

        Raises:
            NonFiniteError: A training loss is not finite, and `stop` is set.
        """
        if wait and self._pending:
            self._clock.wait(self._pending[-1].copied)
        while self._pending and self._clock.passed(self._pending[0].copied):
            self._send(self._pending.popleft())

    def unreported(self) -> dict[int, dict[str, Any]]:
        """Return the training measurements since the last complete report, for a checkpoint.

        This waits for the device. `take` says which reports are complete.

        Returns:
            The sums as plain data, by the module's number.

        Raises:
            NonFiniteError: A loss is not finite, and `stop` is set.
        """
        found: dict[int, dict[str, Any]] = {}
        seconds = self._seconds("train")
        for chunk in self._chunks:
            module, plain = chunk.place.module, self._sums(chunk, "train").plain()
            if self._stop and not isfinite(plain["loss"]):
                raise NonFiniteError(None, module, None)
            if plain["samples"]:
                found[module] = {**plain, "seconds": seconds}
        return found

    def continue_sums(self, unreported: Mapping[int, Mapping[str, Any]]) -> None:
        """Load the measurements that `unreported` returned in an earlier process."""
        for chunk in self._chunks:
            if plain := unreported.get(chunk.place.module):
                chunk.sums["train"] = Sums.of(plain, chunk.device)
                self._before_s["train"] = plain["seconds"]

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent on each split since its last complete report (see `take`).

        This waits for the device.
        """
        for split in list(self._since):
            self.pause(split)
            self.begin(split)
        return {split: self._seconds(split) for split in [*self._spans, *self._before_s]}

    def continue_seconds(self, seconds: Mapping[str, float]) -> None:
        """Load the times that `seconds` returned in an earlier process."""
        self._before_s.update(seconds)

    def _sums(self, chunk: HeldChunk, key: str) -> Sums:
        own = chunk.sums.get(key, Sums())
        return own if self._replicas is None else own.over(self._replicas, chunk.device)

    def _seconds(self, split: str) -> float:
        """Return the seconds spent on a split since its last complete report (see `take`).

        Call `pause` first: the time since `begin` counts only after `pause`.
        """
        for first, last in self._spans.pop(split, []):
            self._clock.wait(last)
            self._before_s[split] += self._clock.seconds(first, last)
            self._clock.free(first)
            self._clock.free(last)
        return self._before_s[split]

    def _send(self, report: _Pending) -> None:
        clock = self._clock
        seconds = report.before_s + sum(clock.seconds(*span) for span in report.spans)
        if report.complete:  # a later report needs the moments of an incomplete one
            moments = [report.copied, *(moment for span in report.spans for moment in span)]
            for moment in {id(each): each for each in moments}.values():
                clock.free(moment)
        losses = [float(measured.loss) for measured in report.modules]
        for measured, loss in zip(report.modules, losses, strict=True):
            self._show_progress()
            warn_of_skipped(measured.module, measured.skipped_steps, measured.skipped)
            if report.split == "train" and self._stop and not isfinite(loss):
                raise NonFiniteError(None, measured.module, None)
            samples = int(measured.samples)
            if self._tell is not None and samples:
                self._tell(
                    "metrics",
                    split=report.split,
                    step=report.step,
                    epoch=report.epoch,
                    module=measured.module,
                    loss=loss,
                    samples=samples,
                    scores=self._scores(measured.rows, report.split != "train"),
                    last_step=_of_last_step(report, measured),
                    complete=report.complete,
                    seconds=seconds,
                )

    def _scores(self, rows: Mapping[str, Tensor], metric_required: bool) -> dict[str, float]:
        """Return a module's scores, and the metric of each additional prediction."""
        found = {name: scored(self._task, each, metric_required) for name, each in rows.items()}
        scores, metric = found.pop(""), self._task.metric
        further = {f"{metric}_{n}": each[metric] for n, each in found.items() if metric in each}
        return scores | further


def _of_last_step(report: _Pending, measured: _Measured) -> dict[str, float]:
    if report.rate is None:
        return {}
    found = {"lr": report.rate}
    if measured.squared_norm is not None:
        found["grad_norm"] = float(measured.squared_norm.sqrt())
    return found


def _copied(chunk: HeldChunk, sums: Mapping[str, Sums]) -> _Measured:
    skipped = chunk.nonfinite.skipped
    steps, flags = list(skipped), list(skipped.values())
    skipped.clear()
    norm, main = chunk.squared_norm, sums[""]
    return _Measured(
        chunk.place.module,
        _to_host(torch.as_tensor(main.loss, dtype=torch.float64)),
        _to_host(torch.as_tensor(main.samples)),
        {name: _to_host(each.rows) for name, each in sums.items()},
        None if norm is None else _to_host(norm),
        steps,
        _to_host(torch.stack(flags) if flags else torch.zeros(0)),
    )


def _to_host(tensor: Tensor) -> Tensor:
    """Return a tensor on the host. A copy from CUDA may still be running when this returns."""
    return tensor.detach().to("cpu", non_blocking=True)
