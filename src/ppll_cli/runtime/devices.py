"""The devices of workers on this machine, and what it must have for them."""

import os
import shutil
from collections.abc import Sequence

import torch

from ppll_cli.errors import ConfigError
from ppll_cli.settings import Settings, usable_cores


def devices_here(
    settings: Settings, workers: int, notes: list[str]
) -> tuple[tuple[str, ...], bool]:
    """The device of each worker of this machine, and whether workers share one.

    Raises:
        ConfigError: There are too few.
    """
    found = torch.cuda.device_count() if settings.device != "cpu" else 0
    if settings.device == "cuda" and found == 0:
        raise ConfigError("device", "cuda", "there is no CUDA device", "use device=cpu")
    left_open = settings.device == "auto" and settings.gpus is None
    if found == 0 or (left_open and found < workers):
        if settings.device == "auto":
            reason = "there is no CUDA device" if found == 0 else f"there are {found} CUDA devices"
            notes.append(f"{reason}: {workers} worker(s) on CPU")
        return ("cpu",) * workers, False
    if found < workers and not settings.oversubscribe:
        raise ConfigError(
            "gpus",
            workers,
            f"there are {found} CUDA devices",
            f"use gpus={found}, device=cpu, or oversubscribe=true to share them",
        )
    return tuple(f"cuda:{worker % found}" for worker in range(workers)), found < workers


def device_of(settings: Settings) -> str:
    """The device of a single worker.

    Raises:
        ConfigError: There is none such here, or it lacks something.
    """
    (device,), _ = devices_here(settings, 1, [])
    check_processors(settings, (device,), [])
    return device


def check_processors(settings: Settings, devices: Sequence[str], notes: list[str]) -> None:
    """Check what workers on CPU need of this machine.

    Raises:
        ConfigError: It lacks something.
    """
    if "cpu" not in devices:
        return
    if settings.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError(
            "compile",
            True,
            "torch.compile needs a C++ compiler for workers on CPU, and found none",
            "install g++, name one in the environment variable CXX, or use compile=false",
        )
    cores, busy = usable_cores(), settings.threads_per_worker * len(devices)
    if busy > cores:
        notes.append(
            f"{len(devices)} worker(s) with {settings.threads_per_worker} thread(s) each share "
            f"{cores} cores: they will wait for one another"
        )
