"""The configuration groups of this project, and the classes of their options. No torch."""

import re
from functools import cache
from pathlib import Path

from ppll_cli.leaves.names import class_path

_TARGET = re.compile(r"^_target_:\s*(\S+)", re.MULTILINE)


def conf_dir() -> Path:
    """Return the folder of configuration groups, in an installed package or at a clone's top."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def as_typed(group: str, target: object) -> tuple[str, object]:
    """Return the key and value by which users choose a class.

    Args:
        group: The configuration group, for example "schedule".
        target: The class, or its dotted path, as `_target_` has it.

    Returns:
        The group and its option (`schedule=interleaved`), if exactly one of this project's options
        names the class; else the path (`schedule._target_=my.Schedule`).
    """
    if isinstance(target, type):
        target = class_path(target)
    options = [option for option, path in _targets(group).items() if path == target]
    return (group, options[0]) if len(options) == 1 else (f"{group}._target_", target)


@cache
def _targets(group: str) -> dict[str, str]:
    """Return the path of the class that each option of a group names."""
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        if match := _TARGET.search(path.read_text(encoding="utf-8")):
            found[path.stem] = match[1]
    return found
