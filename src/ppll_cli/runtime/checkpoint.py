"""Saving the state of a run.

Each stage writes the tensors that it holds under names that know nothing of stages, so that any
partition of the same model can read them. The parent adds a manifest and renames the folder, and
only then does the checkpoint exist::

    checkpoints/step-40/stage-0.safetensors
                        stage-1.safetensors
                        manifest.json
    checkpoints/last -> step-40
    checkpoints/best -> step-40     with checkpoint.best
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.files import write_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the manifest. A program refuses what a later one wrote."""


@dataclass(frozen=True)
class SavedFile:
    """What a stage wrote: its name, its size and the SHA-256 of its bytes."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are whole.

    Attributes:
        folder: Where it is.
        step: Optimizer steps done.
        cuts: The units that start modules 2 to k; none under back-propagation.
        metrics: What `Metrics.state` was as the mark passed.
    """

    folder: Path
    step: int
    cuts: tuple[str, ...]
    metrics: Mapping[str, Any]


class SavedTensors:
    """The tensors of a checkpoint, whichever stage wrote them; a context manager.

    Args:
        folder: The checkpoint's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for path in sorted(self._folder.glob("stage-*.safetensors")):
            file = self._open.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def names(self) -> Iterable[str]:
        """Of all tensors."""
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which is not read."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def save_stage(
    run_dir: str | Path, step: int, stage: int, tensors: Mapping[str, Tensor]
) -> SavedFile:
    """Write a stage's part of a checkpoint that does not exist yet."""
    folder = unfinished_folder(run_dir, step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"stage-{stage}.safetensors"
    # Copies, because the format refuses tensors that share memory, as tied weights do.
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    save_file(copies, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return SavedFile(path.name, path.stat().st_size, digest)


def unfinished_folder(run_dir: str | Path, step: int) -> Path:
    """Where the stages' parts of a checkpoint are until it exists."""
    return Path(run_dir, "checkpoints", f".step-{step}.unfinished")


def finish(
    run_dir: str | Path,
    step: int,
    epoch: int,
    files: Iterable[SavedFile],
    keep: int,
    cuts: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    best: bool = False,
) -> Path:
    """Make a checkpoint of what the stages wrote, and remove old ones.

    Args:
        run_dir: The run directory.
        step: Optimizer steps done.
        epoch: The epoch that the last of them belongs to, from 1.
        files: What the stages wrote.
        keep: How many checkpoints stay.
        cuts: The units that start modules 2 to k.
        metrics: What `Metrics.state` was as the mark passed.
        best: Keep this one until there is a better one.

    Returns:
        The checkpoint's folder.
    """
    unfinished = unfinished_folder(run_dir, step)
    folder = unfinished.with_name(f"step-{step}")
    written = [asdict(file) for file in files]
    there = folder.exists()
    if there:  # the run went on from it and made no step since: only the metrics are new
        written = json.loads((folder / "manifest.json").read_text())["files"]
        shutil.rmtree(unfinished)
    manifest = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "cuts": list(cuts),
        "metrics": metrics or {},
        "files": sorted(written, key=lambda file: str(file["name"])),
    }
    manifest["sha256"] = _digest(manifest)
    write_json((folder if there else unfinished) / "manifest.json", manifest)
    if not there:
        unfinished.rename(folder)
    _name("last", folder)
    if best:
        _name("best", folder)
    kept = best_step(run_dir)
    for old in _steps(run_dir)[:-keep]:
        if old != kept:
            shutil.rmtree(folder.with_name(f"step-{old}"))
    return folder


def best_step(run_dir: str | Path) -> int | None:
    """The step of the checkpoint to which `best` leads."""
    link = Path(run_dir, "checkpoints", "best")
    if not link.is_symlink():
        return None
    step = link.readlink().name.removeprefix("step-")
    return int(step) if step.isdecimal() else None


def newest(run_dir: str | Path) -> Checkpoint | None:
    """The newest checkpoint whose files are whole; those that are not are told.

    Raises:
        ConfigError: One was written by a later program.
    """
    for step in reversed(_steps(run_dir)):
        folder = Path(run_dir, "checkpoints", f"step-{step}")
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            if manifest["format"] > FORMAT:
                raise ConfigError(
                    "resume",
                    run_dir,
                    f"{folder.name} has format {manifest['format']}, and this program knows "
                    f"{FORMAT}",
                    "use a newer ppll-run",
                )
            problem = _damage(folder, manifest)
            if manifest["step"] != step:
                problem = f"it is the checkpoint of step {manifest['step']}"
            found = Checkpoint(folder, step, tuple(manifest["cuts"]), manifest["metrics"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"its manifest cannot be read ({error})"
        if problem is None:
            return found
        log.warning("%s is not used: %s", folder, problem)
    return None


def files(folder: Path) -> list[SavedFile]:
    """The files of a checkpoint that exists."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return [SavedFile(**file) for file in manifest["files"]]


def go_back(run_dir: str | Path, to: Checkpoint | None) -> None:
    """Remove what is later than a checkpoint: it is broken, and its steps are made anew."""
    for step in _steps(run_dir):
        if to is None or step > to.step:
            shutil.rmtree(Path(run_dir, "checkpoints", f"step-{step}"))
    if to is not None:
        _name("last", to.folder)
    for name in ("last", "best"):
        link = Path(run_dir, "checkpoints", name)
        if link.is_symlink() and not link.exists():
            link.unlink()


def _name(name: str, folder: Path) -> None:
    """Have a name lead to a checkpoint."""
    link = folder.with_name(f"{name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.rename(folder.with_name(name))


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says beside that."""
    text = json.dumps({k: v for k, v in manifest.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _damage(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a checkpoint's files."""
    if manifest["sha256"] != _digest(manifest):
        return "manifest.json does not have its checksum"
    for file in manifest["files"]:
        path = folder / Path(file["name"]).name
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != file["size_bytes"]:
            return f"{path.name} has {path.stat().st_size} bytes instead of {file['size_bytes']}"
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                return f"{path.name} does not have its checksum"
    return None


def _steps(run_dir: str | Path) -> list[int]:
    """Of all checkpoints that exist, sorted."""
    folders = Path(run_dir, "checkpoints").glob("step-*")
    numbers = (folder.name.removeprefix("step-") for folder in folders)
    return sorted(int(number) for number in numbers if number.isdecimal())


def write_model(checkpoint: Path, path: Path) -> None:
    """Write the backbone's parameters and buffers under the model's own unit names."""
    with SavedTensors(checkpoint) as saved:
        names = [name for name in saved.names if name.startswith("model.")]
        tensors = {name.removeprefix("model."): saved[name] for name in names}
    unfinished = path.with_suffix(".unfinished")
    try:
        save_file(tensors, unfinished)
        unfinished.rename(path)
    except Exception:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
