"""Stops a run or skips steps when losses or gradients are infinite or NaN."""

from collections.abc import Iterable
from math import inf, isnan

import torch
from torch import Tensor, nn

from ppll_cli.errors import NonFiniteError
from ppll_cli.job.optimizer import warn_of_skipped
from ppll_cli.pipeline.layout import Chunk


class NonFinite:
    """Stops the run or skips a step when numbers are infinite or NaN.

    If `skips` is False, a loss that is infinite or NaN stops the run. If `skips` is True, the run
    goes on, and a step is skipped if its gradient norm is infinite or NaN.

    Attributes:
        found: Whether a loss of the current batch is known to be infinite or NaN.
        skipped: For each step since the latest report, a scalar on the device: 1 if the step was
            skipped, else 0. Filled only on CUDA, and only in a chunk that ends a module.
    """

    def __init__(self, skips: bool, place: Chunk, device: torch.device) -> None:
        self._skips, self._place = skips, place
        self.found = False
        self.skipped: dict[int, Tensor] = {}
        # Reading a tensor on CUDA would make the host wait for all queued work. So on CUDA,
        # `Reports` checks the losses later.
        self._reads_at_once = device.type == "cpu"

    def check(self, loss: Tensor) -> None:
        """Set `found` if a loss is infinite or NaN.

        Do nothing on CUDA, or if `skips` is True.
        """
        if self._reads_at_once and not self._skips:
            self.found = self.found or not bool(loss.isfinite())

    def raise_if_found(self, step: int, parameters: Iterable[nn.Parameter]) -> None:
        """Stop the run if a loss of the current batch was infinite or NaN.

        Args:
            step: Number of optimizer steps done.
            parameters: The error's message has the largest of their gradient norms.

        Raises:
            NonFiniteError: `found` is set.
        """
        if self.found:
            norms = [float(p.grad.norm()) for p in parameters if p.grad is not None]
            largest = max((inf if isnan(norm) else norm for norm in norms), default=None)
            raise NonFiniteError(step, self._place.module, largest)

    def skip_flag(self, step: int, total: Tensor | None) -> Tensor | None:
        """Decide whether to skip a step.

        If the chunk ends a module, also warn of a skipped step: on CPU at once, on CUDA later, by
        means of `skipped`.

        Args:
            step: Number of optimizer steps done before this one.
            total: Squared gradient norm, a scalar on the device; None if it is not computed.

        Returns:
            A float32 scalar on the device: 1 if the step must be skipped, else 0. None if steps are
            never skipped, or if `total` is None.
        """
        if total is None or not self._skips:
            return None
        flag = total.isfinite().logical_not().float()
        if self._place.ends_module and self._reads_at_once:
            warn_of_skipped(self._place.module, [step], flag[None])
        elif self._place.ends_module:
            self.skipped[step] = flag
        return flag
