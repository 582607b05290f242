"""The global random generators of Python and NumPy, which only a user's own code uses."""

import random
from typing import Any

import numpy as np


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
