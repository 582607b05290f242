"""Checkpoints are complete or absent, and equal for every partition."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.job.checkpoint import (
    Checkpoint,
    finish,
    go_back,
    newest,
    save_stage,
    saved_tensors,
    unfinished_folder,
    write_model,
)
from ppll_cli.job.manifest import Manifest, SavedFile
from ppll_cli.leaves.files import digest_of

TENSORS = {
    "model.stem.weight": torch.arange(6.0).reshape(2, 3),
    "model.stem.bn.num_batches_tracked": torch.tensor(7),
    "model.blocks.0.weight": torch.arange(4.0, dtype=torch.bfloat16),
    "auxiliary.0.head.weight": torch.ones(2),
    "optimizer.model.stem.weight.exp_avg": torch.zeros(2, 3),
}
NAMES = list(TENSORS)


def save(run_dir: Path, step: int, parts: list[list[str]], keep: int = 2) -> Path:
    files = [
        save_stage(run_dir, step, stage, {name: TENSORS[name] for name in names})
        for stage, names in enumerate(parts)
    ]
    return finish(run_dir, manifest(step, *reversed(files)), keep)


def manifest(step: int, *files: SavedFile, **more: Any) -> Manifest:
    """Return a manifest for a step of the first epoch."""
    return Manifest(**{"step": step, "epoch": 1, "cuts": (), "metrics": {}, "files": files, **more})


def saved(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)


@pytest.mark.parametrize(
    "parts", [[NAMES], [NAMES[:2], NAMES[2:]], [NAMES[:1], [], NAMES[1:]]], ids=len
)
def test_every_partition_saves_the_same_tensors(tmp_path: Path, parts: list[list[str]]) -> None:
    folder = save(tmp_path, 3, parts)
    assert folder == tmp_path / "checkpoints" / "step-3"
    assert_equal(saved(folder), TENSORS)


def test_the_manifest_describes_the_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, [NAMES[:2], NAMES[2:]])
    found = json.loads((folder / "manifest.json").read_text())
    assert {key: found[key] for key in ("format", "step", "epoch")} == {
        "format": 1,
        "step": 3,
        "epoch": 1,
    }
    files = [folder / "stage-0.safetensors", folder / "stage-1.safetensors"]
    assert found["files"] == [
        {
            "name": file.name,
            "size_bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in files
    ]


def test_a_checkpoint_exists_only_once_it_is_finished(tmp_path: Path) -> None:
    save(tmp_path, 3, [NAMES])
    save_stage(tmp_path, 4, 0, TENSORS)
    checkpoints = tmp_path / "checkpoints"
    assert {path.name for path in checkpoints.glob("step-*")} == {"step-3"}
    assert (checkpoints / "last").resolve().name == "step-3"


def test_saving_leaves_no_unfinished_files(tmp_path: Path) -> None:
    save(tmp_path, 3, [NAMES[:2], NAMES[2:]])
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-3", "last"}


def test_the_newest_checkpoints_are_kept_and_last_is_the_newest(tmp_path: Path) -> None:
    """The order is by number: step-10 is newer than step-9."""
    checkpoints = tmp_path / "checkpoints"
    for step, names in [(8, [8]), (9, [8, 9]), (10, [9, 10]), (100, [10, 100])]:
        save(tmp_path, step, [NAMES], keep=2)
        kept = {path.name for path in checkpoints.glob("step-*")}
        assert kept == {f"step-{n}" for n in names}
        assert (checkpoints / "last").readlink() == Path(f"step-{step}")


def test_saving_a_step_again_never_removes_its_checkpoint(tmp_path: Path) -> None:
    """A resumed run that does no step saves the step from which it resumed once more."""
    folder = save(tmp_path, 3, [NAMES[:2], NAMES[2:]])
    inode = folder.stat().st_ino
    files = [save_stage(tmp_path, 3, 0, TENSORS)]
    assert finish(tmp_path, manifest(3, *files, metrics={"loss": 2.0}), keep=1) == folder
    assert folder.stat().st_ino == inode
    assert {path.name for path in folder.parent.iterdir()} == {"step-3", "last"}
    found = newest(tmp_path)
    assert found is not None
    assert found.manifest.metrics == {"loss": 2.0}
    assert_equal(saved(folder), TENSORS)


def test_tensors_of_every_kind_can_be_saved(tmp_path: Path) -> None:
    awkward = {
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "channels last": torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "part": torch.arange(6.0)[::2],
    }
    save_stage(tmp_path, 1, 0, awkward)
    assert_equal(
        saved(tmp_path / "checkpoints" / ".step-1.unfinished"),
        {name: tensor.detach() for name, tensor in awkward.items()},
    )


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    """The library safetensors creates files that only their owner can read."""
    before = os.umask(umask)
    try:
        write_model(save(tmp_path, 3, [NAMES[:2], NAMES[2:]]), tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.name for path in files} > {"model.safetensors", "stage-1.safetensors"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~umask)}


@pytest.mark.parametrize(
    "parts", [[NAMES], [NAMES[:2], NAMES[2:]], [NAMES[:1], [], NAMES[1:]]], ids=len
)
def test_a_checkpoint_of_any_partition_has_the_same_tensors(
    tmp_path: Path, parts: list[list[str]]
) -> None:
    tensors, unreported = saved_tensors(save(tmp_path, 3, parts))
    assert set(tensors) == set(NAMES)
    assert_equal(tensors, TENSORS)
    assert unreported == {}


# The newest undamaged checkpoint


def test_newest_returns_none_without_a_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    save_stage(tmp_path, 4, 0, TENSORS)
    assert newest(tmp_path) is None


def test_newest_returns_the_newest_checkpoint_and_its_manifest(tmp_path: Path) -> None:
    save(tmp_path, 9, [NAMES])
    file = save_stage(tmp_path, 10, 0, TENSORS)
    state = {"number": 2, "loss": 0.1 + 0.2, "samples": 7}
    said = manifest(10, file, epoch=2, cuts=("blocks.1", "head"), metrics=state)
    folder = finish(tmp_path, said, keep=2)
    assert newest(tmp_path) == Checkpoint(folder, said)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def rewrite(**changes: object) -> Callable[[Path], None]:
    """Return a function that changes a manifest, and gives it a correct checksum."""

    def write(path: Path) -> None:
        said = {**json.loads(path.read_text()), **changes}
        del said["sha256"]
        path.write_text(json.dumps({**said, "sha256": digest_of(said)}))

    return write


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("stage-0.safetensors", truncate, "stage-0.safetensors has"),
        ("stage-1.safetensors", truncate, "stage-1.safetensors has"),
        ("stage-0.safetensors", text(""), "stage-0.safetensors has 0 bytes instead of"),
        ("stage-0.safetensors", flip, "stage-0.safetensors does not match its checksum"),
        ("stage-1.safetensors", flip, "stage-1.safetensors does not match its checksum"),
        ("stage-1.safetensors", Path.unlink, "stage-1.safetensors is missing"),
        ("manifest.json", Path.unlink, "its manifest cannot be read"),
        ("manifest.json", truncate, "its manifest cannot be read"),
        ("manifest.json", text("no JSON"), "its manifest cannot be read"),
        ("manifest.json", text("[1]"), "its manifest cannot be read"),
        ("manifest.json", text("null"), "its manifest cannot be read"),
        ("manifest.json", text('{"format": 1}'), "its manifest cannot be read"),
        ("manifest.json", text('{"format": "1"}'), "its manifest cannot be read"),
        ("manifest.json", rewrite(files=[1]), "its manifest cannot be read"),
        ("manifest.json", rewrite(step=7), "it is the checkpoint of step 7"),
    ],
)
@pytest.mark.parametrize("others", [1, 0])
def test_a_broken_checkpoint_is_reported_and_not_used(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
    problem: str,
    others: int,
) -> None:
    if others:
        save(tmp_path, 8, [NAMES])
    broken = save(tmp_path, 9, [NAMES[:2], NAMES[2:]])
    damage(broken / name)
    found = newest(tmp_path)
    assert (found.step if found else None) == (8 if others else None)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the checkpoint {broken} is not used: {problem}")
    assert "\n" not in record.getMessage()


def test_a_changed_manifest_does_not_match_its_checksum(tmp_path: Path) -> None:
    """With a flipped bit in a number, the file is still JSON.

    The summary would have a wrong loss.
    """
    save(tmp_path, 8, [NAMES])
    file = save_stage(tmp_path, 9, 0, TENSORS)
    said = manifest(9, file, cuts=("head",), metrics={"loss": 12.5})
    path = finish(tmp_path, said, keep=2) / "manifest.json"
    written = path.read_text()
    for old, new in (("12.5", "12.7"), ("head", "heaf"), ('"epoch": 1', '"epoch": 3')):
        assert old in written
        path.write_text(written.replace(old, new))
        found = newest(tmp_path)
        assert found is not None
        assert found.step == 8
    path.write_text(written)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 9


def test_a_checkpoint_of_a_later_program_is_refused(tmp_path: Path) -> None:
    """The rest of its manifest does not matter. No older checkpoint is used instead."""
    save(tmp_path, 8, [NAMES])
    text('{"format": 2}')(save(tmp_path, 9, [NAMES]) / "manifest.json")
    with pytest.raises(ConfigError) as error:
        newest(tmp_path)
    assert str(error.value) == (
        f"resume={tmp_path}: step-9 has format 2, but this program reads formats up to 1; "
        "use a newer ppll-run"
    )


def names(run_dir: Path) -> set[str]:
    """Return the names in the folder of checkpoints, without links to missing folders."""
    return {path.name for path in (run_dir / "checkpoints").iterdir() if path.exists()}


def test_going_back_removes_later_checkpoints(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save(tmp_path, step, [NAMES], keep=3)
    (tmp_path / "checkpoints" / "step-10" / "manifest.json").unlink()
    to = newest(tmp_path)
    assert to is not None
    go_back(tmp_path, to)
    assert names(tmp_path) == {"step-8", "step-9", "last"}
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("step-9")
    go_back(tmp_path, to)  # nothing is left to remove
    assert names(tmp_path) == {"step-8", "step-9", "last"}


def test_going_back_to_the_start_removes_everything(tmp_path: Path) -> None:
    go_back(tmp_path, None)  # there is not even a folder
    for step in (8, 10):
        save(tmp_path, step, [NAMES])
    go_back(tmp_path, None)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_going_back_works_without_links(tmp_path: Path) -> None:
    """A copy of a run may lack links, because some file systems have none."""
    save(tmp_path, 8, [NAMES])
    (tmp_path / "checkpoints" / "last").unlink()
    to = newest(tmp_path)
    go_back(tmp_path, to)
    assert names(tmp_path) == {"step-8", "last"}


def test_a_moved_run_keeps_its_checkpoints(tmp_path: Path) -> None:
    save(tmp_path / "here", 8, [NAMES])
    shutil.move(tmp_path / "here", tmp_path / "there")
    found = newest(tmp_path / "there")
    assert found is not None
    assert found.folder == tmp_path / "there" / "checkpoints" / "step-8"
    assert_equal(saved(tmp_path / "there" / "checkpoints" / "last"), TENSORS)


def test_a_link_in_place_of_a_folder_is_not_written_through(tmp_path: Path) -> None:
    """Otherwise anybody who can write into the folder could have a file of the user overwritten."""
    run_dir, victim = tmp_path / "run", tmp_path / "victim"
    unfinished = unfinished_folder(run_dir, 3)
    victim.mkdir()
    unfinished.parent.mkdir(parents=True)
    unfinished.symlink_to(victim)
    with pytest.raises(OSError, match="a link is where a folder should be"):
        save(run_dir, 3, [NAMES])
    assert not [*victim.iterdir()]
    unfinished.unlink()
    unfinished.mkdir()
    (unfinished / "stage-0.safetensors").symlink_to(victim / "file")
    (run_dir / f".model.safetensors.{os.getpid()}").symlink_to(victim / "file")
    write_model(save(run_dir, 3, [NAMES]), run_dir / "model.safetensors")
    assert not [*victim.iterdir()]
