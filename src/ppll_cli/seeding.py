"""Who draws which random numbers.

Every draw in the program belongs to one of the purposes below and is seeded by what it may depend
on, and by nothing else: not by the process, the stage or what was drawn before. That is what makes
runs with other partitions and schedules comparable bit for bit, and a resumed run equal to one
that was never stopped.
"""

from hashlib import blake2b


def _seed(purpose: str, *parts: int | str) -> int:
    """A seed in [0, 2**63) that is a hash of the purpose and its parts."""
    text = "\0".join([purpose, *(str(part) for part in parts)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def unit_weights(seed: int, unit: str) -> int:
    """For the initial weights of a unit."""
    return _seed("unit weights", seed, unit)


def auxiliary_weights(seed: int, module: int) -> int:
    """For the initial weights of a module's auxiliary network."""
    return _seed("auxiliary weights", seed, module)


def unit_forward(seed: int, unit: str, step: int, micro_batch: int) -> int:
    """For what a unit draws in a training forward pass, dropout for example."""
    return _seed("unit forward", seed, unit, step, micro_batch)


def auxiliary_forward(seed: int, module: int, step: int, micro_batch: int) -> int:
    """For what an auxiliary network draws in a training forward pass."""
    return _seed("auxiliary forward", seed, module, step, micro_batch)


def sample_order(seed: int, epoch: int) -> int:
    """For the order of the training samples in an epoch."""
    return _seed("sample order", seed, epoch)


def augmentation(seed: int, epoch: int, batch: int) -> int:
    """For the augmentation of one batch."""
    return _seed("augmentation", seed, epoch, batch)


def mixing(seed: int, epoch: int, batch: int) -> int:
    """For the mixing of the images of one batch."""
    return _seed("mixing", seed, epoch, batch)


def crop(seed: int, epoch: int, batch: int) -> int:
    """For the pieces that a batch takes out of its pictures."""
    return _seed("crop", seed, epoch, batch)
