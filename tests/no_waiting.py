"""A device for which waiting is an error, to find code that makes the host wait for CUDA."""

from collections.abc import Mapping, Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
"""Takes the place of a CUDA device. On the meta device, torch itself refuses to read a value, as in
`.item()`, a boolean mask or `nonzero`."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses copies from the host to the device, unless they are `staged`.

    Args:
        device: The device.

    Attributes:
        staged_copies: Number of copies that `staged` has made.
    """

    def __init__(self, device: torch.device = DEVICE) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.staged_copies = 0
        self._thread = get_ident()
        self._staging = False

    def staged(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Copy a tensor in place of `ppll_cli.data.staging.to_device`."""
        assert tensor.device.type == "cpu"
        if get_ident() != self._thread:  # a thread of an earlier test is still making a batch
            return tensor.to(device)
        self.staged_copies += 1
        self._staging = True
        try:
            return tensor.to(device)
        finally:
            self._staging = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Check an operation of torch; torch calls this for each operation."""
        made = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "aten::lift_fresh" and made.device == self._device:
            raise AssertionError("torch.tensor(..., device=...) copies and waits")
        if name == "aten::_to_copy" and not self._staging and args[0].device != made.device:
            raise AssertionError(f"a copy from {args[0].device} to {made.device} waits")
        return made
