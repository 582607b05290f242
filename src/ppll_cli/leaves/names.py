"""Names: those that were meant, and those of workers. Imports nothing heavy."""

import difflib
from collections.abc import Iterable


def meant(name: str, names: Iterable[str]) -> str:
    """The nearest of the names as a question to put before what is possible, if one is near."""
    near = difflib.get_close_matches(name, [*names], n=1, cutoff=0.65)
    return f"did you mean {near[0]}? " if near and near[0] != name else ""


def counted(number: int, what: str) -> str:
    """A number of things: `1 run`, `2 runs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def device_name(device: str, machine: int, machines: int) -> str:
    """A device and, where there are several machines, on which of them it is."""
    return f"machine {machine} {device}" if machines > 1 else device


def seat_name(stage: int, replica: int, replicas: int) -> str:
    """A worker by its stage and, where that has several replicas, by which of them it is."""
    return f"{stage} replica {replica}" if replicas > 1 else str(stage)
