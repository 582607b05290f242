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
    module: int
    # The tensors may still be incomplete: read them only after `_Pending.copied`.
    loss: Tensor  # sum over all samples, a scalar
    samples: Tensor
    rows: Mapping[str, Tensor]  # [n, columns] for each prediction by name; "" is the main one
    squared_norm: Tensor | None  # squared gradient norm at the last step
    skipped_steps: Sequence[int]  # steps that may have been skipped
    skipped: Tensor  # for each of `skipped_steps`: 1 if it was skipped, else 0


@dataclass(frozen=True)
class _Pending:
    split: str
    step: int
    epoch: int
    rate: float | None
    complete: bool
    modules: Sequence[_Measured]
    spans: Sequence[tuple[Any, Any]]  # start and end of each period spent on the batches
    before_s: float  # seconds of earlier periods, which are not in `spans`
    copied: Any  # the clock's moment when all tensors are on the host


class Reports:
    """Copies a stage's measurements to the host, and sends them to the parent in order.

    The measurements are summed over the replicas. So all replicas of a stage must call `take` and
    `unreported` in the same order.

    Args:
        replicas: The replicas of the stage; None if the stage has only one worker.
        stop: Whether a training loss that is infinite or NaN ends the run.
        tell: Sends a report to the parent. None in all replicas of a stage but the first, because
            only the first sends reports.
        show_progress: Called before scores are computed, which may take long: tells the parent
            that this worker does not hang.
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
        """Start to count the time of a split. Do nothing if it is already being counted."""
        if split not in self._since:
            self._since[split] = self._clock.mark()

    def pause(self, split: str) -> None:
        """Stop counting the time of a split."""
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

        A report covers the batches since the split's last complete report.

        Args:
            split: The split whose measurements are reported.
            step: Number of optimizer steps done.
            epoch: Number of epochs begun.
            rate: Learning rate of the last step; None in evaluation.
            complete: False if the run ends between two regular reports. Then the measurements are
                kept: the next report, for example after a resume, covers these batches again.
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
        """Send the reports whose tensors are on the host.

        If `wait` is true, wait for all tensors; this leaves a CUDA device idle for a moment.

        Raises:
            NonFiniteError: A training loss is infinite or NaN, and `stop` is set (see `Reports`).
        """
        if wait and self._pending:
            self._clock.wait(self._pending[-1].copied)
        while self._pending and self._clock.passed(self._pending[0].copied):
            self._send(self._pending.popleft())

    def unreported(self) -> dict[int, dict[str, Any]]:
        """Return the training measurements since the last complete report, for a checkpoint.

        The result has plain data for each module, by its number. This waits for the device.

        Raises:
            NonFiniteError: A loss is infinite or NaN, and `stop` is set (see `Reports`).
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
        """Load what `unreported` returned in an earlier process."""
        for chunk in self._chunks:
            if plain := unreported.get(chunk.place.module):
                chunk.sums["train"] = Sums.of(plain, chunk.device)
                self._before_s["train"] = plain["seconds"]

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent on each split since its last complete report, for a snapshot.

        This waits for the device.
        """
        for split in list(self._since):
            self.pause(split)
            self.begin(split)
        return {split: self._seconds(split) for split in [*self._spans, *self._before_s]}

    def continue_seconds(self, seconds: Mapping[str, float]) -> None:
        """Load what `seconds` returned in an earlier process."""
        self._before_s.update(seconds)

    def _sums(self, chunk: HeldChunk, key: str) -> Sums:
        own = chunk.sums.get(key, Sums())
        return own if self._replicas is None else own.over(self._replicas, chunk.device)

    def _seconds(self, split: str) -> float:  # without the time since `begin`: call `pause` first
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
    return tensor.detach().to("cpu", non_blocking=True)  # the copy may still be running
