"""Checks that a data set's batches depend only on the run's seed, the epoch and the batch.

A data set that draws from the global random generators breaks this rule: the numbers then depend on
everything else that the process has drawn.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ppll_cli.leaves.random_states import random_states

_ADVICE = (
    "from its global generator, so batches differ between schedules and after a resume: draw from "
    "a generator that is seeded from the run's seed, the epoch and the batch, for example "
    "generator_of(seeding.augmentation(seed, epoch, batch))"
)


def checked_draws(make: Callable[[], dict[str, Tensor]], method: str) -> dict[str, Tensor]:
    """Call `make`, which makes a batch, check its random numbers, and return the batch.

    `method` is the name of the data set's method that `make` calls, for error messages.

    Meanwhile no other thread may draw with torch. The global generator of torch must not change,
    because networks draw from it at the same time, for example for dropout. The global generators
    of Python and NumPy may change only if `make` seeds them: then a second batch equals the first.

    Raises:
        TypeError: The batch depends on a global generator, or changes torch's.
    """
    before, others = torch.get_rng_state(), random_states()
    made = make()
    if not torch.equal(before, torch.get_rng_state()):
        raise TypeError(f"the data set's {method} draws random numbers with torch {_ADVICE}")
    changed = [name for name, state in random_states().items() if state != others[name]]
    if changed and not _equal(made, make()):
        library = changed[0]
        raise TypeError(f"the data set's {method} draws random numbers with {library} {_ADVICE}")
    return made


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
