"""Parses overrides as Hydra does, and finds the keys that they set. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

ABSENT = object()
"""The result of `at` for a key that does not exist."""


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides as Hydra does.

    Raises:
        OverrideParseException: Hydra cannot parse a text.
    """
    found: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return found


def text(override: Override) -> str:
    """Return an override as it was written on the command line."""
    return override.input_line or ""


def at(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; `ABSENT` if the key does not exist."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def keys(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key that an override sets, with its value: `a={b: 1, c: 2}` sets `a.b` and `a.c`.

    `key` is the text before the override's `=`. `value` is what Hydra parsed from the text after
    it.
    """
    # Hydra merges a dictionary into the old values, so the other keys of `a` keep their values.
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from keys(f"{key}.{name}", inner)
