"""Finds this project's configuration groups and the classes of their options. Imports no torch."""

import re
from functools import cache
from pathlib import Path

from ppll_cli.leaves.names import class_path

_TARGET = re.compile(r"^_target_:\s*(\S+)", re.MULTILINE)


def conf_dir() -> Path:
    """Return the folder `conf`, in the installed package or at the top of the repository."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def as_typed(group: str, target: object) -> tuple[str, object]:
    """Return the key and the value of the override by which a user chooses a class.

    `target` is the class or its dotted path. The result is, for example,
    `("schedule", "interleaved")` if exactly one option of the group has this class. Otherwise it is
    `("schedule._target_", "dotted.path.of.Class")`.
    """
    if isinstance(target, type):
        target = class_path(target)
    options = [option for option, path in _targets(group).items() if path == target]
    return (group, options[0]) if len(options) == 1 else (f"{group}._target_", target)


@cache
def _targets(group: str) -> dict[str, str]:
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        if match := _TARGET.search(path.read_text(encoding="utf-8")):
            found[path.stem] = match[1]
    return found
