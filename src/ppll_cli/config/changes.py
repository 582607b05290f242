"""Finds the overrides that turn the defaults into a given configuration."""

import re
from collections.abc import Mapping
from typing import Any

from ppll_cli.config.commands import setting
from ppll_cli.config.composition import composed
from ppll_cli.leaves.nested import flat

PRESETS = ("recipe", "experiment")
"""Groups whose options choose options of other groups."""

WITHOUT = re.compile(r"resume$|hydra$|local\.bank\.")
"""Matches the keys that `changes` leaves out; `local.bank` is a copy of `fba`."""


def changes(config: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    """Return the overrides that turn the defaults into a resolved configuration.

    `choices` has the chosen option of each configuration group, such as {"schedule": "ppll"}; the
    text "None" stands for no option. The overrides are not quoted for a shell.
    """
    given: list[str] = []
    defaults, usual = composed(given)
    for groups in (PRESETS, tuple(choices)):
        chosen = [g for g in groups if choices.get(g) != usual.get(g)]
        if chosen:
            given += [setting(g, None if choices[g] == "None" else choices[g]) for g in chosen]
            defaults, usual = composed(given)
    before, now = flat(defaults), flat(config)
    for key, value in now.items():
        if WITHOUT.match(key) or (key in before and before[key] == value):
            continue
        given.append(f"{'' if key in before else '+'}{setting(key, value)}")
    given += [f"~{key}" for key in before if key not in now and not WITHOUT.match(key)]
    return given
