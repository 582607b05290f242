"""Flattens nested mappings, such as configurations."""

from collections.abc import Mapping
from typing import Any


def flat(node: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested mappings' values by keys like `before` + `optim.lr`; keep empty mappings."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return found
