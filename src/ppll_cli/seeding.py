"""Seeds for all random numbers.

Each draw in the program has one of the purposes below. Its seed depends on the arguments of that
function and on nothing else: not on the process, the stage or earlier draws. Therefore runs with
other partitions and schedules can be bit-identical, and a resumed run equals one that was never
stopped.
"""

from hashlib import blake2b


def _seed(purpose: str, *parts: int | str) -> int:
    """Return a seed in [0, 2**63), a hash of the purpose and its parts."""
    text = "\0".join([purpose, *(str(part) for part in parts)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def unit_weights(seed: int, unit: str) -> int:
    """Return the seed for the initial weights of a unit."""
    return _seed("unit weights", seed, unit)


def auxiliary_weights(seed: int, module: int) -> int:
    """Return the seed for the initial weights of a module's auxiliary network."""
    return _seed("auxiliary weights", seed, module)


def unit_forward(seed: int, unit: str, step: int, micro_batch: int) -> int:
    """Return the seed for a unit's draws in a training forward, such as dropout."""
    return _seed("unit forward", seed, unit, step, micro_batch)


def auxiliary_forward(seed: int, module: int, step: int, micro_batch: int) -> int:
    """Return the seed for an auxiliary network's draws in a training forward."""
    return _seed("auxiliary forward", seed, module, step, micro_batch)


def sample_order(seed: int, epoch: int) -> int:
    """Return the seed for the order of the training samples in an epoch."""
    return _seed("sample order", seed, epoch)


def augmentation(seed: int, epoch: int, batch: int) -> int:
    """Return the seed for the augmentation of a batch."""
    return _seed("augmentation", seed, epoch, batch)


def mixing(seed: int, epoch: int, batch: int) -> int:
    """Return the seed for mixing the images of a batch."""
    return _seed("mixing", seed, epoch, batch)


def crop(seed: int, epoch: int, batch: int) -> int:
    """Return the seed for the crops that a batch takes from its pictures."""
    return _seed("crop", seed, epoch, batch)
