"""Seeds the random number generators that networks draw from."""

from collections.abc import Callable
from typing import Any

import torch

from ppll_cli.job.course import Batch


class Generators:
    """Seeds the default generators of the CPU and of the worker's CUDA device."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._seed = seed
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])

    def seed(
        self,
        seed_of: Callable[[int, Any, int, int], int],
        owner: str | int,
        batch: Batch,
        micro_batch: int,
    ) -> None:
        """Seed the generators for the forward of a unit or auxiliary network on a micro-batch.

        `seed_of` computes the seed from `owner`: the unit's name, or the number of the auxiliary
        network's module. `micro_batch` is an index within this worker's share of the batch.
        """
        # `torch.manual_seed` would seed every device, and format a stack trace in each call.
        seed = seed_of(self._seed, owner, batch.step, batch.first_micro_batch + micro_batch)
        for generator in self._generators:
            generator.manual_seed(seed)
