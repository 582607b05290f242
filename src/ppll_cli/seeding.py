"""Seeds for all random numbers, one function for each purpose.

A seed is an integer from 0 to 2**63 - 1. It depends only on the function's arguments, not on the
process, the stage or random numbers that were drawn before. So runs with different partitions and
schedules can be bit-identical, and a resumed run equals a run that was never stopped.

The arguments `epoch`, `batch` and `module` are indices from 0. `batch` is the index within the
epoch or, in evaluation, within the split.
"""

from hashlib import blake2b


def _seed(purpose: str, *parts: int | str) -> int:
    text = "\0".join([purpose, *(str(part) for part in parts)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def unit_weights(seed: int, unit: str) -> int:
    """Return the seed for the initial weights of a unit."""
    return _seed("unit weights", seed, unit)


def auxiliary_weights(seed: int, module: int) -> int:
    """Return the seed for the initial weights of a module's auxiliary network.

    `LocalMethod.exports` is called with this seed too. But the networks of the exported units have
    seeds from `unit_weights`, like all units.
    """
    return _seed("auxiliary weights", seed, module)


def unit_forward(seed: int, unit: str, step: int, micro_batch: int) -> int:
    """Return the seed for a unit's random numbers in a forward pass, such as those of dropout.

    In training, `step` is the number of optimizer steps done, and `micro_batch` is the index of the
    micro-batch in its batch. In evaluation, `step` is -1, and `micro_batch` is the index of the
    batch in its split.
    """
    return _seed("unit forward", seed, unit, step, micro_batch)


def auxiliary_forward(seed: int, module: int, step: int, micro_batch: int) -> int:
    """Return the seed for an auxiliary network's random numbers in a forward pass of training.

    `step` is the number of optimizer steps done, and `micro_batch` is the index of the micro-batch
    in its batch.
    """
    return _seed("auxiliary forward", seed, module, step, micro_batch)


def constructor(seed: int, group: str) -> int:
    """Return the seed of the global generators (torch, Python, NumPy) for a constructor.

    The constructor is that of the model (`group` is "model") or of the local method ("local"). The
    model's method `units` is called with this seed too.
    """
    return _seed("constructor", seed, group)


def watching(seed: int, module: int, step: int) -> int:
    """Return the seed for `Criterion.see`, the method by which a loss gets weights of a later unit.

    `module` is the module that the loss trains. `step` is the number of optimizer steps that had
    been done when the unit had these weights.
    """
    return _seed("watching", seed, module, step, 0)


def loading() -> int:
    """Return the seed of the global generators (torch, Python, NumPy) while data are loaded."""
    return _seed("loading")


def training_batch(seed: int, epoch: int, batch: int) -> int:
    """Return the seed of the global generators (torch, Python, NumPy) for a training batch."""
    return _seed("training batch", seed, epoch, batch)


def evaluation_batch(split: str, batch: int) -> int:
    """Return the seed of the global generators (torch, Python, NumPy) for an evaluation batch."""
    return _seed("evaluation batch", split, batch)


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
    """Return the seed for the random crops of a batch's pictures."""
    return _seed("crop", seed, epoch, batch)
