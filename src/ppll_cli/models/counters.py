"""Finds Python attributes that change whenever a network or a task is used, such as counters."""

from collections import deque
from collections.abc import Callable, Mapping
from itertools import count

from torch import Tensor, nn

DEEPEST = 4
"""Containers that are nested deeper than this are compared only by their type, because a container
may contain itself."""

TORCHS_OWN = frozenset(vars(nn.Module()))
"""Attributes of every network, such as its mode and its hooks; they are not compared."""


def counters(owner: object, run: Callable[[], object]) -> tuple[str, ...]:
    """Return the names of the owner's attributes that change in each call of `run`.

    An attribute that changes only in the first call may be a cache, and is not returned. Attributes
    of torch's own layers are not returned either. Numbers, texts, `itertools.count` and containers
    of these are compared by value; all other objects, such as tensors, only by type.

    Args:
        owner: A network, a task or another object.
        run: Uses the owner, for example runs the network. It is called up to two times.
    """
    before = _state(owner)
    run()
    first = _state(owner)
    if first == before:
        return ()
    run()
    second = _state(owner)
    return tuple(name for name in second if second[name] != first.get(name))


def _state(owner: object) -> dict[str, str]:
    layers = owner.named_modules() if isinstance(owner, nn.Module) else [("", owner)]
    return {
        f"{path}.{name}" if path else name: _text(value)
        for path, layer in layers
        if not type(layer).__module__.startswith("torch.")
        for name, value in getattr(layer, "__dict__", {}).items()
        if name not in TORCHS_OWN
    }


def _text(value: object, depth: int = 0) -> str:
    if value is None or isinstance(value, bool | int | float | str | bytes | count):
        return repr(value)
    kind = type(value).__name__
    if depth > DEEPEST or isinstance(value, Tensor):
        return kind
    if isinstance(value, Mapping):
        return f"{kind}({ {_text(k, depth + 1): _text(v, depth + 1) for k, v in value.items()} })"
    if isinstance(value, list | tuple | deque):
        return f"{kind}({[_text(each, depth + 1) for each in value]})"
    if isinstance(value, set | frozenset):
        return f"{kind}({sorted(_text(each, depth + 1) for each in value)})"
    return kind
