"""The record of a run, `config.json`: written once, before training, and read to resume the run.

The file may be damaged, edited, or come from somebody else, so it is checked. Imports no torch.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppll_cli.config.weights import EMA_FILE, MODEL_FILE
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import digest_of, problem_of, read_json
from ppll_cli.observe.runs import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE

CONFIG_FORMAT = 2
"""Format number of `config.json`. Higher ones are refused. Files of format 1 may lack a digest."""

DIGEST = "sha256"
"""The key under which `config.json` stores the digest of all its other keys and values."""

PATHS = ("root", "cache", "folders")
"""Keys of a data set's configuration whose values are folders. In a record, these folders have
absolute paths."""

DATA_FILES = "data-files.json"
"""Name of the file in a run directory with the identity of the data (see `data.identity`)."""

OWN_FILES = (
    CONFIG_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    DATA_FILES,
    MODEL_FILE,
    EMA_FILE,
    "timeline.json",
    "timeline.png",
    "ppll-run.log",
    "wandb-run.json",
)
OWN_FOLDERS = ("checkpoints", "samples", "tensorboard")
"""The folders that a run writes into its directory. `OWN_FILES` has the files."""


def read_record(run_dir: Path) -> dict[str, Any]:
    """Return the record of a run.

    Raises:
        ConfigError: There is no record, a later version wrote it, or it was changed or damaged.
    """
    try:
        record = read_json(run_dir / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise no_run(run_dir, f"that file cannot be read: {problem_of(error)}") from None
    if not isinstance(record, dict):
        raise no_run(run_dir, "that file is not a JSON object")
    _check_digest(run_dir, record)
    return record


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run, with its digest.

    Raises:
        ConfigError: The directory has the record of another run.
        OSError: The record cannot be written; no part of it is left.
    """
    plain = json.loads(json.dumps({**record, "format": CONFIG_FORMAT}))
    path = run_dir / CONFIG_FILE
    try:
        with path.open("x") as file:
            try:
                json.dump({**plain, DIGEST: digest_of(plain)}, file, indent=2)
                file.flush()
            except OSError:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        problem = "is in use by another run"
        raise ConfigError("hydra.run.dir", run_dir, problem, "choose another folder") from None


def no_run(run_dir: Path, reason: str) -> ConfigError:
    """Return the error for a folder that is not a run directory."""
    problem = f"it holds no {CONFIG_FILE} of a run ({reason})"
    remedy = "give the folder that a run printed at its end"
    return ConfigError("resume", run_dir, problem, remedy)


def _check_digest(run_dir: Path, record: Mapping[str, Any]) -> None:
    version = record.get("format", 1)
    if type(version) is not int or not 1 <= version <= CONFIG_FORMAT:
        found = f"its {CONFIG_FILE} has format {version}"
        problem = f"{found}, but this program reads formats 1 to {CONFIG_FORMAT}"
        newer = type(version) is int and version > CONFIG_FORMAT
        remedy = "use a newer ppll-run" if newer else "restore the file that the run wrote"
        raise ConfigError("resume", run_dir, problem, remedy)
    if version == 1 and DIGEST not in record:  # an older program wrote no digest
        return
    if record.get(DIGEST) != digest_of({k: v for k, v in record.items() if k != DIGEST}):
        problem = f"its {CONFIG_FILE} does not match its checksum: it was changed or damaged"
        remedy = "restore the file that the run wrote, or start a new run"
        raise ConfigError("resume", run_dir, problem, f"{remedy} with the settings you want")


def check_kinds(run_dir: Path) -> None:
    """Check that results in a run directory are of the right kind: file, folder or link.

    For example, opening a FIFO would block, and a folder would make the run fail at its end.

    Raises:
        ConfigError: The name of a result belongs to something of another kind.
    """
    kinds = (OWN_FILES, os.path.isfile, "file"), (OWN_FOLDERS, os.path.isdir, "folder")
    for names, fits, kind in kinds:
        for name in names:
            path = run_dir / name
            if os.path.lexists(path) and not fits(path):
                raise ConfigError("resume", run_dir, f"its {name} is not a {kind}", "remove it")
    for name in ("last", "best"):
        path = run_dir / "checkpoints" / name
        if os.path.lexists(path) and not path.is_symlink():
            problem = f"its checkpoints/{name} is not a link to a checkpoint"
            raise ConfigError("resume", run_dir, problem, "remove it, or give it another name")


def absolute(value: Any) -> Any:
    """Make a path, or each path in a list, absolute; return values of other types unchanged.

    A relative path begins in the current directory; `~` is the user's home directory.
    """
    if isinstance(value, str):
        return os.path.abspath(os.path.expanduser(value))
    return [absolute(each) for each in value] if isinstance(value, list) else value
