"""Finds and seeds the random number generators that networks draw from."""

from collections.abc import Iterable

import torch


def generators_of(device: torch.device) -> list[torch.Generator]:
    """Return the CPU's default generator and, if `device` is on CUDA, also the device's."""
    found = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    return found


def seed_each(generators: Iterable[torch.Generator], seed: int) -> None:
    """Seed generators before the forward of a unit or auxiliary network."""
    # `torch.manual_seed` would seed every device, and format a stack trace in each call.
    for generator in generators:
        generator.manual_seed(seed)
