"""The trained model has a file of its own, without auxiliary networks."""

from pathlib import Path

from safetensors.torch import load_file

from ppll_cli.job.checkpoint import write_model
from tests.job.test_checkpoint import NAMES, TENSORS, assert_equal, save


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
