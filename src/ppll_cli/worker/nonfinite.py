"""Stops a run or skips steps when losses or gradients are infinite or NaN."""

from collections.abc import Iterable
from math import inf, isnan

import torch
from torch import Tensor, nn

from ppll_cli.errors import NonFiniteError
from ppll_cli.job.optimizer import warn_of_skipped
from ppll_cli.pipeline.layout import Chunk


class NonFinite:
    """Stops the run at a loss that is not finite, or skips steps whose gradients are not finite.

    If `skips` is True (`optim.nonfinite=skip`), it skips steps. If not, it stops the run. Only a
    chunk at the end of a module reports skipped steps.

    Attributes:
        found: Whether a loss of the current batch is known to be infinite or NaN.
        skipped: Maps each step since the latest report to a flag, a scalar on the device: 1 if the
            step was skipped, else 0. Always empty on CPU, and if `optim.nonfinite` is `stop`.
    """

    def __init__(self, skips: bool, place: Chunk, device: torch.device) -> None:
        self._skips, self._place = skips, place
        self.found = False
        self.skipped: dict[int, Tensor] = {}
        # Reading a tensor on CUDA would make the host wait for all queued work.
        self._reads_at_once = device.type == "cpu"

    def check(self, loss: Tensor) -> None:
        """Check a loss that is on the CPU, unless `optim.nonfinite` is `skip`.

        A loss on another device is checked when it is reported.
        """
        if self._reads_at_once and not self._skips:
            self.found = self.found or not bool(loss.isfinite())

    def raise_if_found(self, step: int, parameters: Iterable[nn.Parameter]) -> None:
        """Raise an error if a loss of the batch was not finite.

        The error message has the largest gradient norm of a single parameter. `step` is the number
        of optimizer steps done before the batch.

        Raises:
            NonFiniteError: A loss is not finite, and `optim.nonfinite` is `stop`.
        """
        if self.found:
            norms = [float(p.grad.norm()) for p in parameters if p.grad is not None]
            largest = max((inf if isnan(norm) else norm for norm in norms), default=None)
            raise NonFiniteError(step, self._place.module, largest)

    def skip_flag(self, step: int, total: Tensor | None) -> Tensor | None:
        """Decide whether to skip a step, and report a skipped step.

        `total` is the squared gradient norm, a scalar; None if nothing needs it.

        Returns:
            A scalar on the device, 1 if the step has to be skipped and else 0. None if
            `optim.nonfinite` is `stop`, or `total` is None.
        """
        if total is None or not self._skips:
            return None
        flag = total.isfinite().logical_not().float()
        if self._place.ends_module and self._reads_at_once:
            warn_of_skipped(self._place.module, [step], flag[None])
        elif self._place.ends_module:
            self.skipped[step] = flag
        return flag
