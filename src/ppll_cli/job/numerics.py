"""Applies the settings `precision` and `deterministic` to torch in this process."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils.deterministic

from ppll_cli.job.convolutions import mended_convolutions

_memory: Any = torch.utils.deterministic  # type checkers do not know the property that `_set` sets


class _Flags(NamedTuple):
    """torch's global switches for a process. The last three concern only CUDA."""

    deterministic: bool
    fill_memory: bool
    tf32_matmul: bool
    tf32_convolution: bool
    cudnn_benchmark: bool


@dataclass(frozen=True)
class Numerics:
    """The precision and determinism of a run's computations.

    The precision is "fp32", "tf32" or "bf16" (by autocast). Float32 operations use TF32 only if the
    precision is "tf32". (By default, torch uses TF32 for convolutions, not for matrix products.)
    """

    precision: str
    deterministic: bool

    def apply(self, device: torch.device) -> None:
        """Set torch's switches in this process for computations on a device."""
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        flags = _get()._replace(deterministic=self.deterministic)
        if self.deterministic:
            # All memory is written before it is read, so torch need not fill new memory.
            flags = flags._replace(fill_memory=False)
        if device.type == "cuda":
            tf32 = self.precision == "tf32"
            flags = flags._replace(
                tf32_matmul=tf32,
                tf32_convolution=tf32,
                # A run has few input shapes, so cuDNN may try all its algorithms on each of them.
                # Timing noise can change its choice, and with it the last bits of results.
                cudnn_benchmark=not self.deterministic,
            )
        _set(flags)

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Apply these settings inside the with statement."""
        before = _get()
        self.apply(device)
        try:
            yield
        finally:
            _set(before)

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Run forward passes and losses in this precision inside the with statement."""
        if self.precision != "bf16":
            yield
            return
        with torch.autocast(device.type, torch.bfloat16), mended_convolutions():
            yield


def in_force(device: torch.device) -> Mapping[str, bool]:
    """Return which of torch's switches are on. CUDA's switches count as off on other devices."""
    flags, cuda = _get(), device.type == "cuda"
    return {
        "deterministic": flags.deterministic,
        "tf32_matmul": cuda and flags.tf32_matmul,
        "tf32_convolution": cuda and flags.tf32_convolution,
        "cudnn_benchmark": cuda and flags.cudnn_benchmark,
    }


def _get() -> _Flags:
    with _without_warning():
        return _Flags(
            torch.are_deterministic_algorithms_enabled(),
            _memory.fill_uninitialized_memory,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
        )


def _set(flags: _Flags) -> None:
    if flags.deterministic != torch.are_deterministic_algorithms_enabled():
        # Only when needed: the call imports torch's compiler, which takes seconds.
        torch.use_deterministic_algorithms(flags.deterministic)
    _memory.fill_uninitialized_memory = flags.fill_memory
    with _without_warning():
        torch.backends.cuda.matmul.allow_tf32 = flags.tf32_matmul
        torch.backends.cudnn.allow_tf32 = flags.tf32_convolution
    torch.backends.cudnn.benchmark = flags.cudnn_benchmark


@contextmanager
def _without_warning() -> Iterator[None]:
    """Ignore torch's warning that `fp32_precision` will replace the `allow_tf32` switches.

    Every version of torch has `allow_tf32`; setting it sets `fp32_precision` too. If we set only
    `fp32_precision`, code that reads `allow_tf32` would fail, such as torch.compile of torch 2.10.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32")
        yield
