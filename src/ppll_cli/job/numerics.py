"""Applies the settings `precision` and `deterministic` to torch in this process."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.deterministic

from ppll_cli.job.autocast import mended_operations

_CUDA_SWITCHES: Mapping[str, tuple[Any, str]] = {
    "tf32_matmul": (torch.backends.cuda.matmul, "allow_tf32"),
    "tf32_convolution": (torch.backends.cudnn, "allow_tf32"),
    "cudnn_benchmark": (torch.backends.cudnn, "benchmark"),
}
"""torch's switches for CUDA by name; each is an attribute of an object."""

_SWITCHES = {"fill_memory": (torch.utils.deterministic, "fill_uninitialized_memory")}
_SWITCHES |= _CUDA_SWITCHES


@dataclass(frozen=True)
class Numerics:
    """The precision and determinism of a run's computations.

    The precision is "fp32", "tf32" or "bf16" (by autocast). Float32 operations use TF32 only if the
    precision is "tf32".
    """

    precision: str
    deterministic: bool

    def apply(self, device: torch.device) -> None:
        """Set torch's switches in this process, for all later computations on a device."""
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        flags = {"deterministic": self.deterministic}
        if self.deterministic:
            # All memory is written before it is read, so torch need not fill new memory.
            flags["fill_memory"] = False
        if device.type == "cuda":
            # By default, torch uses TF32 for convolutions, but not for matrix products.
            flags["tf32_matmul"] = flags["tf32_convolution"] = self.precision == "tf32"
            # A run has few input shapes, so cuDNN may try all its algorithms on each of them.
            # Timing noise can change its choice, and with it the last bits of results.
            flags["cudnn_benchmark"] = not self.deterministic
        _set(flags)

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Set torch's switches as `apply` does; after the `with` block, restore their old values.

        The environment variable CUBLAS_WORKSPACE_CONFIG stays set.
        """
        before = _get()
        self.apply(device)
        try:
            yield
        finally:
            _set(before)

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Let autocast compute the `with` block in bfloat16, if the precision is "bf16".

        Use it for forward passes and losses. With other precisions, it changes nothing.
        """
        if self.precision != "bf16":
            yield
            return
        with torch.autocast(device.type, torch.bfloat16), mended_operations():
            yield


def in_force(device: torch.device) -> Mapping[str, bool]:
    """Return whether each of torch's switches is on, by name; switches for CUDA are off on CPU."""
    flags, cuda = _get(), device.type == "cuda"
    on_cuda = {name: cuda and flags[name] for name in _CUDA_SWITCHES}
    return {"deterministic": flags["deterministic"], **on_cuda}


def _get() -> dict[str, bool]:
    with _without_warning():
        found = {name: getattr(*switch) for name, switch in _SWITCHES.items()}
    return {"deterministic": torch.are_deterministic_algorithms_enabled(), **found}


def _set(flags: Mapping[str, bool]) -> None:
    if flags["deterministic"] != torch.are_deterministic_algorithms_enabled():
        # Only when needed: the call imports torch's compiler, which takes seconds.
        torch.use_deterministic_algorithms(flags["deterministic"])
    with _without_warning():
        for name in flags.keys() & _SWITCHES:
            setattr(*_SWITCHES[name], flags[name])


@contextmanager
def _without_warning() -> Iterator[None]:
    # torch warns that the switch `fp32_precision` will replace `allow_tf32`. We set `allow_tf32`,
    # because every version of torch has it, and because torch then also sets `fp32_precision`.
    # After setting only `fp32_precision`, code that reads `allow_tf32` would fail, for example
    # torch.compile of torch 2.10.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32")
        yield
