"""The global random generators of torch, Python and NumPy.

The program itself draws only from torch's. A user's own code may draw from all of them.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of torch, Python and NumPy in a `with` body; then restore them."""
    states = random_states()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` also seeds devices
        seed_generators(seed)
        try:
            yield
        finally:
            restore_random_states(states)


def seed_generators(seed: int) -> None:
    """Seed the generators of Python and NumPy."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy accepts only 32 bits


def random_states() -> dict[str, Any]:
    """Return the states of Python's and NumPy's generators. They can be compared by `==`."""
    numpy_state: Any = np.random.get_state()
    kind, keys, *rest = numpy_state
    return {"random": random.getstate(), "numpy.random": (kind, tuple(keys.tolist()), *rest)}


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore states that `random_states` returned."""
    random.setstate(states["random"])
    np.random.set_state(states["numpy.random"])
