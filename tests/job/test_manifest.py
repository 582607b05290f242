"""Files of a checkpoint that the system does not let be read are not taken for damaged ones."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll_cli.errors import ConfigError
from ppll_cli.job.checkpoint import finish, newest, save_stage
from ppll_cli.job.manifest import Manifest
from ppll_cli.leaves.files import open_regular


def save(run_dir: Path, step: int) -> None:
    file = save_stage(run_dir, step, 0, {"model.weight": torch.ones(2)})
    finish(run_dir, Manifest(step, 1, (), {}, (file,)), keep=2)


@pytest.mark.parametrize("name", ["manifest.json", "stage-0.safetensors"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """It was taken for damaged: the run went back to an earlier one, and removed it."""
    for step in (2, 3):
        save(tmp_path, step)

    def opened(path: Path, *arguments: Any) -> Any:
        if path.parts[-2:] == ("step-3", name):
            raise OSError(number, os.strerror(number), str(path))
        return open_regular(path, *arguments)

    monkeypatch.setattr("ppll_cli.leaves.files.open_regular", opened)
    monkeypatch.setattr("ppll_cli.job.manifest.open_regular", opened)
    problem = r"its checkpoint step-3 cannot be read: .*; make it readable, or remove it"
    with pytest.raises(ConfigError, match=problem):
        newest(tmp_path)


def test_a_folder_of_checkpoints_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run started again at step 0, and dropped its metrics."""
    save(tmp_path, 3)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"its `checkpoints` cannot be read: permission denied"):
        newest(tmp_path)
