"""Metrics on their way from a stage's device to the parent."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ppll_cli.errors import NonFiniteError
from ppll_cli.job.optimizer import warn_of_skipped
from ppll_cli.tasks.task import Task
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.clock import Clock
from ppll_cli.worker.sums import Sums


@dataclass(frozen=True)
class _Measured:
    """What was measured of one module; the tensors are on the host once the copy is done."""

    module: int
    loss: Tensor
    samples: int | Tensor
    rows: Tensor
    skipped_steps: Sequence[int]
    skipped: Tensor


@dataclass(frozen=True)
class _Pending:
    """A report that is being copied.

    Attributes:
        split: What was measured on.
        step: Optimizer steps done.
        epoch: Epochs begun.
        modules: What was measured.
        since: The moment when the first batch began.
        copied: The moment when everything is on the host.
    """

    split: str
    step: int
    epoch: int
    modules: Sequence[_Measured]
    since: Any
    copied: Any


class Reports:
    """Copies what was measured to the host, and sends it when it is there, in this order.

    On CPU it is there at once. On CUDA to wait for it would leave the device without work, so that
    `send` is called once a step and leaves what has not arrived to a later one.

    Args:
        clock: Of the stage's device.
        task: Makes scores of what was measured.
        stop: Whether a training loss that is no finite number ends the run.
        tell: Tells the parent; where replicas share a stage, only the first one does.
        get_on: Called before each module, whose scores may take long.
    """

    def __init__(
        self,
        clock: Clock,
        task: Task,
        stop: bool,
        tell: Callable[..., None] | None,
        get_on: Callable[[], None],
    ) -> None:
        self._clock, self._task, self._stop = clock, task, stop
        self._tell, self._get_on = tell, get_on
        self._since: dict[str, Any] = {}
        self._pending: deque[_Pending] = deque()

    def begin(self, split: str) -> None:
        """A batch of a split begins; the first one since the last report starts its time."""
        if split not in self._since:
            self._since[split] = self._clock.mark()

    def take(
        self,
        split: str,
        step: int,
        epoch: int,
        chunks: Sequence[HeldChunk],
        replicas: Replicas | None,
        device: torch.device,
    ) -> None:
        """Begin to copy what was measured on a split since it was last taken.

        Args:
            split: What was measured on.
            step: Optimizer steps done.
            epoch: Epochs begun.
            chunks: Those of the stage; the ones with a loss have measured something.
            replicas: Adds up over the replicas of the stage, where there are several.
            device: Of the stage.
        """
        modules = []
        for chunk in chunks:
            if chunk.criterion is not None:
                sums = chunk.sums.pop(split, Sums())
                if replicas is not None:
                    sums = sums.over(replicas, device)
                modules.append(_copied(chunk, sums))
        copied = self._clock.mark()
        self._pending.append(
            _Pending(split, step, epoch, modules, self._since.pop(split, copied), copied)
        )

    def send(self, wait: bool = False) -> None:
        """Send the reports that have arrived.

        Args:
            wait: Wait for all of them.

        Raises:
            NonFiniteError: A training loss is no finite number, and the run is to stop then.
        """
        if wait and self._pending:
            self._clock.wait(self._pending[-1].copied)
        while self._pending and self._clock.passed(self._pending[0].copied):
            self._send(self._pending.popleft())

    def _send(self, report: _Pending) -> None:
        seconds = self._clock.seconds(report.since, report.copied)
        for moment in {id(each): each for each in (report.since, report.copied)}.values():
            self._clock.free(moment)
        losses = [float(measured.loss) for measured in report.modules]
        for measured, loss in zip(report.modules, losses, strict=True):
            self._get_on()
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
                    scores=self._task.score(measured.rows),
                    seconds=seconds,
                )


def _copied(chunk: HeldChunk, sums: Sums) -> _Measured:
    steps, flags = list(chunk.skipped), list(chunk.skipped.values())
    chunk.skipped.clear()
    return _Measured(
        chunk.place.module,
        _to_host(torch.as_tensor(sums.loss, dtype=torch.float64)),
        _to_host(sums.samples) if isinstance(sums.samples, Tensor) else sums.samples,
        _to_host(torch.cat(sums.measures) if sums.measures else torch.zeros(0, 0)),
        steps,
        _to_host(torch.stack(flags) if flags else torch.zeros(0)),
    )


def _to_host(tensor: Tensor) -> Tensor:
    """A copy that is there when the device has done it: from CUDA torch makes it in pinned memory.

    On CPU it is the tensor itself.
    """
    return tensor.detach().to("cpu", non_blocking=True)
