"""Checkpoints: whole or not there, and the same for every partition."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ppll_cli.runtime.checkpoint import finish, save_stage, write_model

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
    return finish(run_dir, step, epoch=1, files=reversed(files), keep=keep)


def saved(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)


@pytest.mark.parametrize(
    "parts", [[NAMES], [NAMES[:2], NAMES[2:]], [NAMES[:1], [], NAMES[1:]]], ids=len
)
def test_every_partition_saves_the_same(tmp_path: Path, parts: list[list[str]]) -> None:
    folder = save(tmp_path, 3, parts)
    assert folder == tmp_path / "checkpoints" / "step-3"
    assert_equal(saved(folder), TENSORS)


def test_manifest(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, [NAMES[:2], NAMES[2:]])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("format", "step", "epoch")} == {
        "format": 1,
        "step": 3,
        "epoch": 1,
    }
    files = [folder / "stage-0.safetensors", folder / "stage-1.safetensors"]
    assert manifest["files"] == [
        {
            "name": file.name,
            "size_bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in files
    ]


def test_there_is_no_checkpoint_before_it_is_finished(tmp_path: Path) -> None:
    save(tmp_path, 3, [NAMES])
    save_stage(tmp_path, 4, 0, TENSORS)
    checkpoints = tmp_path / "checkpoints"
    assert {path.name for path in checkpoints.glob("step-*")} == {"step-3"}
    assert (checkpoints / "last").resolve().name == "step-3"


def test_nothing_unfinished_is_left(tmp_path: Path) -> None:
    save(tmp_path, 3, [NAMES[:2], NAMES[2:]])
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-3", "last"}


def test_the_newest_are_kept_and_last_leads_to_the_newest(tmp_path: Path) -> None:
    """By number: step-10 is newer than step-9."""
    checkpoints = tmp_path / "checkpoints"
    for step, names in [(8, [8]), (9, [8, 9]), (10, [9, 10]), (100, [10, 100])]:
        save(tmp_path, step, [NAMES], keep=2)
        kept = {path.name for path in checkpoints.glob("step-*")}
        assert kept == {f"step-{n}" for n in names}
        assert (checkpoints / "last").readlink() == Path(f"step-{step}")


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 3, [NAMES[:2], NAMES[2:]])
    folder = save(tmp_path, 3, [NAMES])
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "stage-0.safetensors"}


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


def test_the_model_is_the_backbone_under_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(save(tmp_path, 3, [NAMES[:2], NAMES[2:]]), path)
    backbone = {
        name.removeprefix("model."): tensor
        for name, tensor in TENSORS.items()
        if name.startswith("model.")
    }
    assert len(backbone) == 3
    assert_equal(load_file(path), backbone)
    write_model(save(tmp_path, 4, [NAMES]), path)  # again, over the old one
    assert_equal(load_file(path), backbone)
    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoints", "model.safetensors"}
