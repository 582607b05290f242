"""Seeds the random number generators that networks draw from."""

import torch


class Generators:
    """Seeds the default generator of the CPU and, if the worker computes on CUDA, of its device.

    Args:
        device: The device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])

    def seed(self, seed: int) -> None:
        """Seed all generators.

        `torch.manual_seed` would seed every device, and format a stack trace in each call.
        """
        for generator in self._generators:
            generator.manual_seed(seed)
