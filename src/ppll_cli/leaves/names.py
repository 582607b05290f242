"""Makes texts for messages: names of workers and devices, hints about typos. Imports no torch."""

import difflib
from collections.abc import Iterable


def meant(name: str, names: Iterable[str]) -> str:
    """Return "did you mean NAME? " for the most similar name; empty if none is similar."""
    near = difflib.get_close_matches(name, [*names], n=1, cutoff=0.65)
    return f"did you mean {near[0]}? " if near and near[0] != name else ""


def counted(number: int, what: str, ending: str = "s") -> str:
    """Return a number with its noun in singular or plural: `1 run`, `2 runs`.

    `ending` is what the plural adds to the noun.
    """
    return f"{number} {what}{'' if number == 1 else ending}"


def class_path(cls: type) -> str:
    """Return the dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def place_name(device: str, machine: int, machines: int) -> str:
    """Return a device's name for users, with the machine's number if there are several machines."""
    return f"machine {machine} {device}" if machines > 1 else device


def seat_name(stage: int, replica: int, replicas: int) -> str:
    """Return a worker's name for users: its stage, and its replica if the stage has several."""
    return f"{stage} replica {replica}" if replicas > 1 else str(stage)
