"""The number that a run returns to a sweeper: what it is, and whether there is such a thing."""

import re
from collections.abc import Mapping
from typing import Any

from ppll_cli.errors import ConfigError

Summary = Mapping[str, Any]


def chosen(key: str | None, summary: Summary, metric: str) -> str:
    """The key of the summary that is meant; by default the held-out part's metric, else the test's.

    Args:
        key: What was asked for: names of keys, and numbers of list items, joined by dots.
        summary: What `summary.json` holds; its numbers may be null.
        metric: Name of the task's metric.

    Raises:
        ConfigError: There is no such number.
    """
    if key is None:
        return f"{'val' if 'val' in summary else 'test'}.{metric}"
    node: Any = summary
    names = key.split(".")
    for depth, name in enumerate(names):
        there = [str(n) for n in (node if isinstance(node, Mapping) else range(_length(node)))]
        if depth and re.fullmatch(r"(test|val)(_ema)?", names[depth - 1]) and not there:
            there = ["loss", metric]  # null until it is measured
        if name not in there:
            remedy = f"there are {', '.join(there)}" if there else "it is no group of keys"
            place = ".".join(names[:depth]) or "summary.json"
            raise ConfigError("objective", key, f"{place} has no {name!r}", remedy)
        if isinstance(node, Mapping):
            node = node.get(name)
        else:
            node = None if node is None else node[int(name)]
    if not (node is None or (isinstance(node, int | float) and not isinstance(node, bool))):
        raise ConfigError("objective", key, "is not a number in summary.json")
    return key


def value(key: str, summary: Summary) -> float | None:
    """The number that is there at the end; None where it is not known."""
    node: Any = summary
    for name in key.split("."):
        if node is None:
            return None
        node = node[name] if isinstance(node, Mapping) else node[int(name)]
    return None if node is None else float(node)


def _length(node: object) -> int:
    return len(node) if isinstance(node, list) else 0
