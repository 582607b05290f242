"""Chooses devices for the workers of this machine, and checks that the workers can run there."""

import os
import shutil
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ppll_cli.config.settings import Settings, usable_cores
from ppll_cli.errors import ConfigError
from ppll_cli.leaves import cuda
from ppll_cli.leaves.machine import processor
from ppll_cli.leaves.names import counted

INCLUDE_VARIABLES = ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")
"""Environment variables that name further folders in which compilers look for headers."""


def devices_here(
    settings: Settings, workers: int, notes: list[str]
) -> tuple[tuple[str, ...], bool]:
    """Return the device of each worker of this machine, and whether workers share a CUDA device.

    If workers fall back to the CPU, a note for the user is appended to `notes`.

    Raises:
        ConfigError: There are too few CUDA devices, and the settings let workers neither run on CPU
            nor share devices.
    """
    found = cuda.device_count() if settings.device != "cpu" else 0
    if settings.device == "cuda" and found == 0:
        raise ConfigError("device", "cuda", _shortage(found), "use device=cpu")
    left_open = settings.device == "auto" and settings.gpus is None
    if found == 0 or (left_open and found < workers):
        if settings.device == "auto":
            notes.append(f"{_shortage(found)}: {workers} worker(s) on CPU")
        return ("cpu",) * workers, False
    if found < workers and not settings.oversubscribe:
        remedy = f"use gpus={found}, device=cpu, or oversubscribe=true to share them"
        raise ConfigError("gpus", workers, _shortage(found), remedy)
    return tuple(f"cuda:{worker % found}" for worker in range(workers)), found < workers


def _shortage(found: int) -> str:
    return f"this machine has {counted(found, 'CUDA device')}" if found else cuda.why_none()


def device_of(settings: Settings) -> str:
    """Choose the device of a single worker, and check that the worker can run there.

    Raises:
        ConfigError: There is no such device, or `precision` or `compile` does not work there.
    """
    (device,), _ = devices_here(settings, 1, [])
    check_processors(settings, (device,), [])
    return device


def model_of(device: str) -> str:
    """Return the product name of a device, without creating a CUDA context in this process."""
    return processor() if device == "cpu" else cuda.device_name(device)


def receiver_of(device: str) -> str:
    """Return the device to which transfers from `device` are measured.

    It is `cuda:1` if `device` is `cuda:0` and there are several CUDA devices, otherwise `device`.
    """
    several = device == "cuda:0" and cuda.device_count() > 1
    return "cuda:1" if several else device


def check_processors(settings: Settings, devices: Sequence[str], notes: list[str]) -> None:
    """Check that `precision` and `compile` work on these devices of this machine.

    If the workers need more CPU cores than there are, a note for the user is appended to `notes`.

    Raises:
        ConfigError: `precision` or `compile` does not work there.
    """
    on_cpu = "cpu" in devices
    if on_cpu and settings.precision == "tf32":
        raise ConfigError(
            "precision", "tf32", "is for CUDA devices, but workers run on CPU", "use precision=fp32"
        )
    if settings.compile:
        _check_compiler(on_cpu)
    if not on_cpu:
        return
    cores, busy = usable_cores(), settings.threads_per_worker * len(devices)
    if busy > cores:
        notes.append(
            f"{len(devices)} worker(s) with {settings.threads_per_worker} thread(s) each share "
            f"{cores} cores: they will wait for one another"
        )


def _check_compiler(on_cpu: bool) -> None:
    language, variable, usual, other = (
        ("C++", "CXX", "g++", "clang++") if on_cpu else ("C", "CC", "gcc", "clang")
    )
    named = os.environ.get(variable)
    # If the environment variable CC names a compiler, Triton looks for no other one.
    sought = [named or usual, other] if on_cpu or not named else [named]
    if not any(map(shutil.which, sought)):
        where = "CPU" if on_cpu else "CUDA"
        raise ConfigError(
            "compile",
            True,
            f"torch.compile needs a {language} compiler for workers on {where}, but there is no "
            f"{' or '.join(sought)}",
            f"install {usual}, name one in the environment variable {variable}, or use "
            "compile=false",
        )
    header = _python_header()
    if not header.exists() and not any(name in os.environ for name in INCLUDE_VARIABLES):
        problem = f"torch.compile needs Python's C headers, but there is no {header}"
        remedy = "install them (on Debian and Ubuntu: python3-dev), or use compile=false"
        raise ConfigError("compile", True, problem, remedy)
    if not on_cpu and find_spec("triton") is None:
        problem = "torch.compile needs Triton for workers on CUDA, and it is not installed"
        raise ConfigError("compile", True, problem, "use compile=false")


def _python_header() -> Path:
    # The default scheme is not used: on Debian, its folders are for packages of the user.
    return Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
