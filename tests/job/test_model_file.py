"""The trained model has a file of its own, without auxiliary networks."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ppll_cli.errors import Interrupted
from ppll_cli.job import checkpoint
from ppll_cli.job.checkpoint import finish, save_stage, write_model
from tests.job.test_checkpoint import NAMES, TENSORS, assert_equal, manifest, save


def test_the_model_file_has_the_backbone_with_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(save(tmp_path, 3, [NAMES[:2], NAMES[2:]]), path)
    backbone = {
        name.removeprefix("model."): tensor
        for name, tensor in TENSORS.items()
        if name.startswith("model.")
    }
    assert len(backbone) == 3
    assert_equal(load_file(path), backbone)
    write_model(save(tmp_path, 4, [NAMES]), path)  # again, over the old file
    assert_equal(load_file(path), backbone)
    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoints", "model.safetensors"}


def test_a_large_model_is_not_copied_in_memory(tmp_path: Path) -> None:
    file = save_stage(tmp_path, 3, 0, {"model.weight": torch.ones(2**22)})  # 16 MiB
    last = finish(tmp_path, manifest(3, file), keep=1)
    tracemalloc.start()
    write_model(last, tmp_path / "model.safetensors")
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < 4 * 2**20
    assert load_file(tmp_path / "model.safetensors")["weight"].sum() == 2**22


def test_an_interrupted_write_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    last = save(tmp_path, 3, [NAMES])
    path.write_text("before")

    def interrupted(_: object, file: Path) -> None:
        file.write_text("half")
        raise Interrupted(2)

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(Interrupted):
        write_model(last, path)
    assert path.read_text() == "before"
    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoints", "model.safetensors"}
