"""Saving the state of a run.

Each stage writes the tensors that it holds under names that know nothing of stages, so that any
partition of the same model can read them. The parent adds a manifest and renames the folder, and
only then does the checkpoint exist::

    checkpoints/step-40/stage-0.safetensors
                        stage-1.safetensors
                        manifest.json
    checkpoints/last -> step-40
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class SavedFile:
    """What a stage wrote: its name, its size and the SHA-256 of its bytes."""

    name: str
    size_bytes: int
    sha256: str


def save_stage(
    run_dir: str | Path, step: int, stage: int, tensors: Mapping[str, Tensor]
) -> SavedFile:
    """Write a stage's part of a checkpoint that does not exist yet."""
    folder = _unfinished(run_dir, step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"stage-{stage}.safetensors"
    # Copies, because the format refuses tensors that share memory, as tied weights do.
    copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    save_file(copies, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return SavedFile(path.name, path.stat().st_size, digest)


def finish(
    run_dir: str | Path, step: int, epoch: int, files: Iterable[SavedFile], keep: int
) -> Path:
    """Make a checkpoint of what the stages wrote, and remove old ones.

    Args:
        run_dir: The run directory.
        step: Optimizer steps done.
        epoch: The epoch that the last of them belongs to, from 1.
        files: What the stages wrote.
        keep: How many checkpoints stay.

    Returns:
        The checkpoint's folder.
    """
    unfinished = _unfinished(run_dir, step)
    manifest = {
        "format": 1,
        "step": step,
        "epoch": epoch,
        "files": sorted((asdict(file) for file in files), key=lambda file: str(file["name"])),
    }
    with (unfinished / "manifest.json").open("w") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    folder = unfinished.with_name(f"step-{step}")
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    link = folder.with_name("last.new")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.rename(folder.with_name("last"))
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.parent.glob("step-*"))
    for old in steps[:-keep]:
        shutil.rmtree(folder.with_name(f"step-{old}"))
    return folder


def write_model(checkpoint: Path, path: Path) -> None:
    """Write the backbone's parameters and buffers under the model's own unit names."""
    tensors = {}
    for file in sorted(checkpoint.glob("stage-*.safetensors")):
        with safe_open(file, framework="pt") as stage:
            for name in stage.keys():  # noqa: SIM118 - it is no mapping
                if name.startswith("model."):
                    tensors[name.removeprefix("model.")] = stage.get_tensor(name)
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    unfinished.rename(path)


def _unfinished(run_dir: str | Path, step: int) -> Path:
    return Path(run_dir, "checkpoints", f".step-{step}.unfinished")
