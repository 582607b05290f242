"""Run directories with the record that resuming needs, and the changes with which they resume."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ppll_cli.launch.resume import recorded
from tests.conftest import compose_config

STARTED = ["data=synthetic", "model.depth=2", "max_steps=7", "checkpoint.keep=5", "data.pad=1"]
Config = dict[str, Any]


@cache
def composed(*overrides: str) -> tuple[Config, dict[str, str]]:
    return compose_config([*STARTED, *overrides])


def write_config(folder: Path, *overrides: str, **changes: object) -> Path:
    """Write the files of a run directory that resuming needs."""
    config, choices = composed(*overrides)
    folder.mkdir(exist_ok=True)
    record = {**config, "threads": 3, "choices": choices, "format": 1, **changes}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "ppll-run.log").write_text("what was before\n")
    return folder


def change(folder: Path, *overrides: str) -> tuple[Config, dict[str, str]]:
    """Return the configuration and choices with which a run resumes."""
    given = [f"resume={folder}", *overrides]
    before = recorded(given)
    assert before is not None
    return before.changed(*compose_config(before.arguments(given)), given)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with a single level, whose keys contain dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def differences(folder: Path, *overrides: str) -> dict[str, Any]:
    """Return the keys and values that differ from those with which the run was started."""
    record = json.loads((folder / "config.json").read_text())
    config, _ = change(folder, *overrides)
    assert config.pop("resume") == str(folder)
    for key in ("choices", "format", "resume"):
        record.pop(key, None)
    before, after = flat(record), flat(config)
    assert before.keys() == after.keys()
    return {key: value for key, value in after.items() if value != before[key]}


def spoil(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, **changes}))


def spoil_choice(folder: Path, group: str, choice: object) -> None:
    record = json.loads((folder / "config.json").read_text())
    spoil(folder, choices={**record["choices"], group: choice})


EVIL = "evil_module.Evil"
