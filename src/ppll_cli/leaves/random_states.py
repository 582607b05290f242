"""The global random generators of torch, Python and NumPy.

The program itself draws only from torch's. A user's own code may draw from all of them.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed all global generators for the body of a `with`; then restore their states.

    Of torch's generators, these are the CPU's and, if `device` is on CUDA, that of `device`.
    """
    generators = generators_of(device)
    before = [generator.get_state() for generator in generators]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    seed_each(generators, seed)
    seed_generators(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def noticed_draws(generators: Sequence[torch.Generator] = ()) -> Iterator[list[str]]:
    """Notice whether the body of a `with` draws random numbers from global generators.

    Yield a list. After the body, it has the names of the libraries whose generators have changed:
    "torch", "random" and "numpy.random". Of torch's generators, only `generators` are watched.
    """
    drawn: list[str] = []
    of_torch, others = [each.get_state() for each in generators], random_states()
    yield drawn
    now = [each.get_state() for each in generators]
    if not all(map(torch.equal, of_torch, now)):
        drawn.append("torch")
    drawn += [library for library, state in random_states().items() if state != others[library]]


def generators_of(device: torch.device) -> list[torch.Generator]:
    """Return the CPU's default generator and, if `device` is on CUDA, also the device's."""
    found = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    return found


def seed_each(generators: Iterable[torch.Generator], seed: int) -> None:
    """Seed generators of torch."""
    # `torch.manual_seed` would seed every device, and format a stack trace in each call.
    for generator in generators:
        generator.manual_seed(seed)


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
