"""Finds the overrides that turn the defaults into a given configuration."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ppll_cli.config.commands import setting
from ppll_cli.config.composition import composed

PRESETS = ("recipe", "experiment")
"""Groups whose options choose options of other groups."""

WITHOUT = re.compile(r"resume$|hydra$|local\.bank\.")
"""Keys for which `changes` returns no override. (`local.bank` is a copy of `fba`.)"""


def changes(config: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    """Return the overrides that turn the defaults into this resolved configuration.

    The overrides are not quoted for a shell. Hydra must be initialised before the call.
    """
    given: list[str] = []
    defaults, usual = composed(given)
    for groups in (PRESETS, tuple(choices)):
        chosen = [_option(g, choices[g]) for g in groups if choices.get(g) != usual.get(g)]
        if chosen:
            given += chosen
            defaults, usual = composed(given)
    before, now = (dict(_leaves(each)) for each in (defaults, config))
    for key, value in now.items():
        if WITHOUT.match(key) or (key in before and before[key] == value):
            continue
        given.append(f"{'' if key in before else '+'}{setting(key, value)}")
    given += [f"~{key}" for key in before if key not in now and not WITHOUT.match(key)]
    return given


def _leaves(node: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _option(group: str, name: str) -> str:
    return setting(group, None if name == "None" else name)
