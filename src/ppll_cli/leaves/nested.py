"""Flattens nested mappings, such as configurations."""

from collections.abc import Mapping
from typing import Any


def flat(node: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten nested mappings: {"optim": {"lr": 1}} becomes {"optim.lr": 1}.

    An empty mapping counts as a value. `before` is put in front of each key, without a dot.
    """
    found: dict[str, Any] = {}
    for name, value in node.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return found
