"""What `precision` and `deterministic` mean to torch, in workers and where a parent measures."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils.deterministic

_memory: Any = torch.utils.deterministic  # type checkers do not see its property


class _Flags(NamedTuple):
    """torch's own switches, which hold for the whole process; all but the first are for CUDA."""

    deterministic: bool
    fill_memory: bool
    tf32_matmul: bool
    tf32_convolution: bool
    cudnn_benchmark: bool


@dataclass(frozen=True)
class Numerics:
    """How a run computes.

    Attributes:
        precision: fp32, tf32 or bf16 (autocast). What is not under autocast is true fp32 unless it
            is tf32: torch's own default takes TF32 for convolutions and fp32 for matrix products.
        deterministic: Use deterministic algorithms only.
    """

    precision: str
    deterministic: bool

    def apply(self, device: torch.device) -> None:
        """Have this process compute so on a device."""
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        flags = _get()._replace(deterministic=self.deterministic)
        if self.deterministic:
            # All memory that is taken is written before it is read, so filling it is of no use.
            flags = flags._replace(fill_memory=False)
        if device.type == "cuda":
            tf32 = self.precision == "tf32"
            flags = flags._replace(
                tf32_matmul=tf32,
                tf32_convolution=tf32,
                # A run has few shapes, so it pays to try all of cuDNN's algorithms on each of them.
                # Chance decides which one wins, and with it the bits.
                cudnn_benchmark=not self.deterministic,
            )
        _set(flags)

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """The same while the body runs."""
        before = _get()
        self.apply(device)
        try:
            yield
        finally:
            _set(before)

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """What forward passes and losses run under."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


def in_force(device: torch.device) -> Mapping[str, bool]:
    """How this process computes on a device, as torch says now."""
    flags, cuda = _get(), device.type == "cuda"
    return {
        "deterministic": flags.deterministic,
        "tf32_matmul": cuda and flags.tf32_matmul,
        "tf32_convolution": cuda and flags.tf32_convolution,
        "cudnn_benchmark": cuda and flags.cudnn_benchmark,
    }


def _get() -> _Flags:
    with _old_names():
        return _Flags(
            torch.are_deterministic_algorithms_enabled(),
            _memory.fill_uninitialized_memory,
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
        )


def _set(flags: _Flags) -> None:
    if flags.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(flags.deterministic)  # imports the compiler, in seconds
    _memory.fill_uninitialized_memory = flags.fill_memory
    with _old_names():
        torch.backends.cuda.matmul.allow_tf32 = flags.tf32_matmul
        torch.backends.cudnn.allow_tf32 = flags.tf32_convolution
    torch.backends.cudnn.benchmark = flags.cudnn_benchmark


@contextmanager
def _old_names() -> Iterator[None]:
    """Switch TF32 by the names that every torch understands.

    Some versions warn that `fp32_precision` will replace them. But where that is set, what still
    reads the old names fails, torch.compile of torch 2.10 for one; the old names set both.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32")
        yield
