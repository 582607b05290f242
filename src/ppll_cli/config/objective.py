"""The objective: the number from a run's summary that the run returns to Hydra's sweeper."""

import re
from collections.abc import Mapping
from typing import Any

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.metric_lines import is_number

Summary = Mapping[str, Any]

SPLIT = re.compile(r"(test|val)(_ema)?")
"""Matches the keys of a summary that have the results on a split."""


def chosen(key: str | None, summary: Summary, metric: str) -> str:
    """Return the key of a run's objective in its summary, such as `test.loss`.

    Args:
        key: The user's setting: keys and indices of list items, joined by dots. None means the
            metric of `val`, or of `test` in a run without `val`.
        summary: The summary before the training. Numbers that are measured later are None.
        metric: The name of the task's metric.

    Raises:
        ConfigError: The summary has no such key, or its value is neither a number nor None, or the
            key names all results on a split, such as `test`.
    """
    if key is None:
        return f"{'val' if 'val' in summary else 'test'}.{metric}"
    node: Any = summary
    names = key.split(".")
    if SPLIT.fullmatch(names[-1]):  # null until it is measured
        raise ConfigError("objective", key, "is not a number", f"give {key}.loss or {key}.{metric}")
    for depth, name in enumerate(names):
        there = _inside(node)
        if depth and SPLIT.fullmatch(names[depth - 1]) and not there:
            there = {"loss": None, metric: None}  # the results are null until they are measured
        if name not in there:
            remedy = f"there are {', '.join(there)}" if there else "it is not a group of keys"
            place = ".".join(names[:depth]) or "summary.json"
            raise ConfigError("objective", key, f"{place} has no {name!r}", remedy)
        node = there[name]
    if not (node is None or is_number(node)):
        remedy = f"give the key of a number, such as test.{metric}"
        raise ConfigError("objective", key, "is not a number in summary.json", remedy)
    return key


def check_direction(key: str, direction: str | None, metric: str, lower_is_better: bool) -> None:
    """Refuse a search for the worst loss or metric, for example for the largest loss.

    Args:
        key: The key of the objective, such as `test.loss`.
        direction: What the sweeper searches for: "minimize", "maximize", or None if unknown.
        metric: The name of the task's metric.
        lower_is_better: Whether small values of the metric are good.

    Raises:
        ConfigError: The direction is wrong.
    """
    best = {"loss": "minimize", metric: "minimize" if lower_is_better else "maximize"}
    name = key.rpartition(".")[2]
    if direction is not None and direction != best.get(name, direction):
        problem = f"with the objective {key}, the search would look for the worst {name}"
        remedy = f"give hydra.sweeper.direction={best[name]}"
        raise ConfigError("hydra.sweeper.direction", direction, problem, remedy)


def value(key: str, summary: Summary) -> float | None:
    """Return the value of the objective in a summary; None if it was not measured."""
    node: Any = summary
    for name in key.split("."):
        node = _inside(node).get(name)
    return None if node is None else float(node)


def _inside(node: Any) -> Mapping[str, Any]:
    if isinstance(node, list):
        return {str(index): value for index, value in enumerate(node)}
    return node if isinstance(node, Mapping) else {}
