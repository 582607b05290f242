"""Checks that a data set does not draw random numbers from the global generators."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppll_cli.leaves.random_states import random_states

_ADVICE = (
    "so batches differ between schedules and after a resume: draw from a generator that is seeded "
    "from the run's seed, the epoch and the batch, for example "
    "generator_of(seeding.augmentation(seed, epoch, batch))"
)


def checked_draws(make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the training batch that `make` returns; refuse it if it depends on global generators.

    `make` must not draw from torch's global generator, because networks draw from it at the same
    time, for example for dropout. `make` may seed the global generators of Python and NumPy and
    draw from them. So if they have changed, `make` is called again, and must return an equal batch.

    No other thread may draw from these generators during the call.

    Raises:
        TypeError: `make` changed torch's generator, or the second batch differs.
    """
    before, others = torch.get_rng_state(), random_states()
    made = make()
    problem = "the data set's train() draws random numbers from the global generator of"
    if not torch.equal(before, torch.get_rng_state()):
        raise TypeError(f"{problem} torch, as networks do at the same time, {_ADVICE}")
    changed = [name for name, state in random_states().items() if state != others[name]]
    if changed and not _equal(made, make()):
        raise TypeError(f"{problem} {changed[0]}, {_ADVICE}")
    return made


def _equal(one: object, other: object) -> bool:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return True  # no batches; the worker refuses them with a message of its own
    pairs = [(one[name], other.get(name)) for name in one]
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )
