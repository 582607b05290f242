"""Overrides as Hydra reads them, and the keys that they give. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

ABSENT = object()
"""The value of a key that is not there."""


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them.

    Raises:
        OverrideParseException: One of them is none.
    """
    found: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return found


def text(override: Override) -> str:
    """An override as it stood on the command line."""
    return override.input_line or ""


def at(config: Mapping[str, Any], key: str) -> Any:
    """The value at a key with dots."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def keys(key: str, value: Any) -> Iterator[str]:
    """The keys that an override gives: those inside a dictionary, which Hydra merges."""
    if not isinstance(value, dict):
        yield key
        return
    for name, inner in value.items():
        yield from keys(f"{key}.{name}", inner)
