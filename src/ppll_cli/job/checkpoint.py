"""Saves and finds checkpoints, and reads the trained model from them.

Each stage writes one file with its tensors. The names of tensors contain no stage number, so that a
run with another partition of the same model can load them. A checkpoint is finished when the parent
process has added the manifest and renamed the folder::

    checkpoints/step-40/stage-0.safetensors
                        stage-1.safetensors
                        manifest.json
    checkpoints/last -> step-40
    checkpoints/best -> step-40     only if checkpoint.best=true
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.job.manifest import (
    MANIFEST_FILE,
    DamagedError,
    LaterFormatError,
    Manifest,
    SavedFile,
    UnreadableError,
    checked_manifest,
    read_manifest,
)
from ppll_cli.leaves.files import apply_umask, make_folder, remove, replacing

log = logging.getLogger(__name__)

EMA = "ema."
"""Averaged weights in a checkpoint have this prefix before the unit's name."""

Unreported = Mapping[int, Mapping[str, Any]]
"""Training measurements since the last report, as plain data, by the module's number."""

UNREPORTED = "unreported"
"""Key of the `Unreported` measurements, as JSON, in the metadata of a stage's file. A file without
such measurements lacks the key.
"""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return self.manifest.step


def saved_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[int, Mapping[str, Any]]]:
    """Return a checkpoint's tensors by name, and its training measurements (see `Unreported`).

    The tensors are views of the stages' files, so their values are read only when needed. If the
    folder has no manifest, all files named `stage-*.safetensors` are used.

    Raises:
        DamagedError: The manifest cannot be used (see `read_manifest`).
        OSError, SafetensorError: A stage's file is missing, or cannot be read.
    """
    if (folder / MANIFEST_FILE).exists():
        paths = [folder / file.name for file in read_manifest(folder).files]
    else:  # a user may have copied only the stages' files
        paths = sorted(folder.glob("stage-*.safetensors"))
    tensors: dict[str, Tensor] = {}
    unreported: dict[int, Mapping[str, Any]] = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = json.loads((file.metadata() or {}).get(UNREPORTED, "{}"))
        unreported |= {int(module): plain for module, plain in found.items()}
    return tensors, unreported


def save_stage(
    run_dir: str | Path,
    step: int,
    stage: int,
    tensors: Mapping[str, Tensor],
    unreported: Unreported | None = None,
) -> SavedFile:
    """Write one stage's file of a checkpoint; return the file's entry for the manifest.

    Args:
        run_dir: The run directory.
        step: Number of optimizer steps done.
        stage: Number of the stage.
        tensors: The tensors to write, by name.
        unreported: Measurements to write too.

    Raises:
        OSError, SafetensorError: The file cannot be written.
    """
    folder = unfinished_folder(run_dir, step)
    make_folder(folder)
    path = folder / f"stage-{stage}.safetensors"
    path.unlink(missing_ok=True)  # if it is a link, its target must not be overwritten
    # Clone, because safetensors refuses tensors that share memory, such as tied weights.
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    save_file(copies, path, {UNREPORTED: json.dumps(unreported)} if unreported else None)
    apply_umask(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return SavedFile(path.name, path.stat().st_size, digest)


def unfinished_folder(run_dir: str | Path, step: int) -> Path:
    """Return the folder into which stages write their files before a checkpoint is finished."""
    return Path(run_dir, "checkpoints", f".step-{step}.unfinished")


def finish(run_dir: str | Path, manifest: Manifest, keep: int, best: bool = False) -> Path:
    """Finish a checkpoint after all stages have written their files, and return its folder.

    Args:
        run_dir: The run directory.
        manifest: The manifest of the checkpoint.
        keep: Number of the newest checkpoints that stay, at least 1. Older ones are removed, except
            the one to which the link `best` points.
        best: Whether this checkpoint is the best one so far. Then the link `best` points to it.

    Raises:
        OSError: A file cannot be written, renamed or removed.
    """
    unfinished = unfinished_folder(run_dir, manifest.step)
    folder = unfinished.with_name(f"step-{manifest.step}")
    if folder.is_dir():  # the run resumed at this step and did no further step
        replace(manifest, files=read_manifest(folder).files).write(folder)
        shutil.rmtree(unfinished)
    else:
        manifest.write(unfinished)
        remove(folder)
        unfinished.rename(folder)
    _point_link("last", folder)
    if best:
        _point_link("best", folder)
    kept = best_step(run_dir)
    for step, old in _step_folders(run_dir)[:-keep]:
        if step != kept:
            remove(old)
    return folder


def best_step(run_dir: str | Path) -> int | None:
    """Return the step of the checkpoint that `best` links to, or None if there is none."""
    link = Path(run_dir, "checkpoints", "best")
    if not link.is_symlink():
        return None
    step = link.readlink().name.removeprefix("step-")
    return int(step) if step.isdecimal() else None


def newest(run_dir: str | Path) -> Checkpoint | None:
    """Find the newest undamaged checkpoint; None if there is none.

    If newer checkpoints are damaged, log a warning for each.

    Raises:
        ConfigError: `checkpoints` is not a folder, it or a checkpoint in it cannot be read, or a
            newer version of this program wrote a checkpoint.
    """
    place = Path(run_dir, "checkpoints")
    if os.path.lexists(place) and not os.path.isdir(place):
        raise ConfigError("resume", run_dir, "its `checkpoints` is not a folder", "remove it")
    if os.path.isdir(place) and not os.access(place, os.R_OK | os.X_OK):
        raise _unreadable(run_dir, "its `checkpoints`", "permission denied")
    for step, folder in reversed(_step_paths(run_dir)):
        try:
            if not os.path.isdir(folder):
                raise DamagedError("it is not a folder")
            manifest = checked_manifest(folder)
            if manifest.step != step:
                raise DamagedError(f"it is the checkpoint of step {manifest.step}")
        # After the next two errors, the checkpoint may be undamaged. It is not skipped, because
        # `go_back` would then remove it.
        except LaterFormatError as error:
            raise ConfigError("resume", run_dir, str(error), "use a newer ppll-run") from None
        except UnreadableError as error:
            raise _unreadable(run_dir, f"its checkpoint {folder.name}", error) from None
        except DamagedError as error:
            log.warning("the checkpoint %s is not used: %s", folder, error)
        else:
            return Checkpoint(folder, manifest)
    return None


def _unreadable(run_dir: str | Path, what: str, why: object) -> ConfigError:
    remedy = "make it readable, or remove it to continue without it"
    return ConfigError("resume", run_dir, f"{what} cannot be read: {why}", remedy)


def go_back(run_dir: str | Path, to: Checkpoint | None) -> None:
    """Remove all checkpoints after `to`, or all checkpoints if `to` is None.

    Call this with the result of `newest`, before a run resumes there: then only damaged checkpoints
    are removed. The link `last` points to `to` afterwards; other links to removed checkpoints are
    removed.
    """
    for step, folder in _step_paths(run_dir):
        if to is None or step > to.step:
            remove(folder)
    if to is not None:
        _point_link("last", to.folder)
    for name in ("last", "best"):
        link = Path(run_dir, "checkpoints", name)
        if link.is_symlink() and not os.path.exists(link):
            link.unlink()


def named(run_dir: str | Path, name: str) -> Checkpoint:
    """Find a checkpoint by its name (`last`, `best` or a number of steps), and check its files.

    Raises:
        DamagedError: The checkpoint's files do not match its manifest or cannot be read, or a newer
            version of this program wrote the manifest.
        FileNotFoundError: There is no such checkpoint; the message lists the existing ones.
    """
    place = Path(run_dir, "checkpoints")
    folder = place / (f"step-{name}" if name.isdecimal() else name)
    if not (name.isdecimal() or name in ("last", "best")) or not folder.is_dir():
        steps = [str(step) for step, _ in _step_folders(run_dir)]
        links = [link for link in ("best", "last") if (place / link).is_dir()]
        raise FileNotFoundError(f"there are {', '.join([*links, *steps]) or 'none'}")
    return Checkpoint(folder.resolve(), checked_manifest(folder))


def has_ema(checkpoint: Path) -> bool:
    """Return whether a checkpoint has averaged weights (EMA). Raise what `saved_tensors` raises."""
    tensors, _ = saved_tensors(checkpoint)
    return any(name.startswith(EMA) for name in tensors)


def model_tensors(checkpoint: Path, ema: bool = False) -> dict[str, Tensor]:
    """Read the model's parameters and buffers, named by unit, without auxiliary networks.

    If `ema` is true, tensors that have an average (see `EMA`) are replaced by it. Only
    floating-point tensors have one. The exceptions are those of `saved_tensors`.
    """
    # EMA comes last: below, a tensor with a later prefix replaces one with the same name.
    prefixes = ("model.", EMA) if ema else ("model.",)
    tensors, _ = saved_tensors(checkpoint)
    return {n.removeprefix(p): t for p in prefixes for n, t in tensors.items() if n.startswith(p)}


def write_model(checkpoint: Path, path: Path, ema: bool = False) -> None:
    """Write the model of a checkpoint to a safetensors file; `model_tensors` explains `ema`.

    Raises:
        DamagedError: The files of the checkpoint do not match its manifest, or cannot be read.
        LaterFormatError: A newer version of this program wrote the manifest.
        OSError, SafetensorError: Tensors cannot be read, or the model cannot be written.
    """
    checked_manifest(checkpoint)
    with replacing(path) as unfinished:
        # This makes no copy of the model in memory: the tensors are views of the stages' files.
        save_file(model_tensors(checkpoint, ema), unfinished)
        apply_umask(unfinished)


def _point_link(name: str, folder: Path) -> None:
    link = folder.with_name(f"{name}.new")
    remove(link)
    link.symlink_to(folder.name)
    link.rename(folder.with_name(name))


def _step_paths(run_dir: str | Path) -> list[tuple[int, Path]]:
    found = []
    for path in Path(run_dir, "checkpoints").glob("step-*"):
        number = path.name.removeprefix("step-")
        if re.fullmatch(r"0|[1-9][0-9]{0,17}", number):
            found.append((int(number), path))
    return sorted(found)


def _step_folders(run_dir: str | Path) -> list[tuple[int, Path]]:
    return [(step, path) for step, path in _step_paths(run_dir) if path.is_dir()]
