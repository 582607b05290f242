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
    """Return key and value of the override that chooses `target`, a class or its dotted path.

    If exactly one option of the group names the class, the key is the group and the value is this
    option, as in `schedule=interleaved`. Otherwise, the key is the group's `_target_` and the value
    is the dotted path of the class.
    """
    if isinstance(target, type):
        target = class_path(target)
    options = [option for option, path in _targets(group).items() if path == target]
    return (group, options[0]) if len(options) == 1 else (f"{group}._target_", target)


@cache
def _targets(group: str) -> dict[str, str]:
    """Map each option of a group to the dotted path of its class."""
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        if match := _TARGET.search(path.read_text(encoding="utf-8")):
            found[path.stem] = match[1]
    return found
