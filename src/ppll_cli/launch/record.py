"""The record of a run, `config.json`: written once, before training, and read to resume the run.

What is read may have been damaged, edited, or put there by somebody else. Imports no torch.
"""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import digest_of, problem_of, read_json
from ppll_cli.observe.runs import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE

CONFIG_FORMAT = 2
"""Of that file. A program refuses what a later one wrote. From 2 on it has a digest of itself."""

DIGEST = "sha256"
"""Its key for that digest."""

PATHS = ("root", "cache", "folders")
"""Keys of a data set that name folders: they are recorded as absolute paths."""

DATA_FILES = "data-files.json"
"""In a run directory: the entries of `ppll_cli.data.identity`, to name the one that differs."""

OWN_FILES = (
    CONFIG_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    DATA_FILES,
    "model.safetensors",
    "model_ema.safetensors",
    "timeline.json",
    "timeline.png",
    "ppll-run.log",
    "wandb-run.json",
)
OWN_FOLDERS = ("checkpoints", "samples", "tensorboard")
"""What a run writes into its directory."""


def read_record(run_dir: Path) -> dict[str, Any]:
    """What a run recorded, found to be as it was written where it has a digest.

    Raises:
        ConfigError: There is no record, a later program wrote it, or it is damaged.
    """
    try:
        record = read_json(run_dir / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise no_run(run_dir, f"that file cannot be read: {problem_of(error)}") from None
    if not isinstance(record, dict):
        raise no_run(run_dir, "that file is no JSON object")
    _check_digest(run_dir, record)
    return record


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run with a digest of it, where there is none.

    Raises:
        ConfigError: Another run has written one.
        OSError: It cannot be written; no part of it is left.
    """
    plain = json.loads(json.dumps({**record, "format": CONFIG_FORMAT}))
    path = run_dir / CONFIG_FILE
    try:
        with path.open("x") as file:
            try:
                json.dump({**plain, DIGEST: digest_of(plain)}, file, indent=2)
                file.flush()
            except OSError:  # a part of it would be of no use
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        problem = "is in use by another run"
        raise ConfigError("hydra.run.dir", run_dir, problem, "choose another folder") from None


def no_run(run_dir: Path, reason: str) -> ConfigError:
    """The error for a folder that is no run's."""
    problem = f"it holds no {CONFIG_FILE} of a run ({reason})"
    remedy = "give the folder that a run printed at its end"
    return ConfigError("resume", run_dir, problem, remedy)


def _check_digest(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Refuse what a later program wrote, and what is not as it was written."""
    version = record.get("format", 1)
    if (
        not isinstance(version, int)
        or isinstance(version, bool)
        or not 1 <= version <= CONFIG_FORMAT
    ):
        problem = f"its {CONFIG_FILE} has format {version}, and this program knows {CONFIG_FORMAT}"
        raise ConfigError("resume", run_dir, problem, "use a newer ppll-run")
    if version == 1 and DIGEST not in record:  # of an older program
        return
    if record.get(DIGEST) != digest_of({k: v for k, v in record.items() if k != DIGEST}):
        problem = f"its {CONFIG_FILE} does not have its checksum: it was changed, or damaged"
        remedy = "put back what the run wrote, or start a new run with what you want"
        raise ConfigError("resume", run_dir, problem, remedy)


def check_kinds(run_dir: Path) -> None:
    """Refuse a directory in which something else stands in the place of what a run writes.

    A FIFO would be waited for, and a folder would fail the run when all has been computed.

    Raises:
        ConfigError: There is such a thing.
    """
    for names, fits, kind in (
        (OWN_FILES, stat.S_ISREG, "file"),
        (OWN_FOLDERS, stat.S_ISDIR, "folder"),
    ):
        for name in names:
            path = run_dir / name
            if not os.path.lexists(path):
                continue
            try:
                is_right = fits(path.stat().st_mode)
            except OSError:  # a link that leads nowhere, or round in a circle
                is_right = False
            if not is_right:
                raise ConfigError("resume", run_dir, f"its {name} is no {kind}", "remove it")
    for name in ("last", "best"):
        path = run_dir / "checkpoints" / name
        if os.path.lexists(path) and not path.is_symlink():
            problem = f"its checkpoints/{name} is no link to a checkpoint"
            raise ConfigError("resume", run_dir, problem, "remove it, or give it another name")


def absolute(value: Any) -> Any:
    """What names a folder, or several, as absolute paths."""
    if isinstance(value, str):
        return os.path.abspath(os.path.expanduser(value))
    return [absolute(each) for each in value] if isinstance(value, list) else value
