"""Anything in the place of a checkpoint or of metrics that is not valid is skipped and removed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll_cli.errors import ConfigError
from ppll_cli.job.checkpoint import finish, go_back, newest, save_stage, saved_tensors
from ppll_cli.job.manifest import Manifest
from ppll_cli.leaves.files import digest_of
from ppll_cli.observe.metrics import Metrics
from ppll_cli.tasks.classification import Classification
from tests.launch.test_record import KINDS

STAGE = "stage-0.safetensors"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Write checkpoints of steps 8 and 9, and return their folder."""
    for step in (8, 9):
        make(tmp_path, step)
    return tmp_path / "checkpoints"


def make(run_dir: Path, step: int) -> Path:
    file = save_stage(run_dir, step, 0, {"model.head.weight": torch.full((2,), float(step))})
    return finish(run_dir, Manifest(step, 1, ("head",), {"number": 1}, (file,)), keep=9)


def found(checkpoints: Path) -> int | None:
    checkpoint = newest(checkpoints.parent)
    return None if checkpoint is None else checkpoint.step


@pytest.mark.parametrize("kind", [*KINDS, Path.touch, Path.mkdir])
@pytest.mark.parametrize("name", ["step-10", "step-9"])
def test_resume_skips_and_removes_other_things_named_like_a_checkpoint(
    checkpoints: Path, kind: Callable[[Path], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For a link, `rmtree` once raised an error that ended the run."""
    if (checkpoints / name).exists():
        shutil.rmtree(checkpoints / name)
    kind(checkpoints / name)
    expected = 9 if name == "step-10" else 8
    assert found(checkpoints) == expected
    assert f"{checkpoints / name} is not used: " in caplog.text
    go_back(checkpoints.parent, newest(checkpoints.parent))
    assert not os.path.lexists(checkpoints / name)
    make(checkpoints.parent, 10)
    assert found(checkpoints) == 10


def test_a_linked_checkpoint_is_used_and_only_the_link_is_removed(
    checkpoints: Path, tmp_path: Path
) -> None:
    shutil.move(checkpoints / "step-9", tmp_path / "elsewhere")
    (checkpoints / "step-9").symlink_to(tmp_path / "elsewhere")
    assert found(checkpoints) == 9
    go_back(checkpoints.parent, None)
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["step-", "step-x", "step-\u0663", "step-007", "step-9" * 20])
def test_a_folder_with_another_name_is_no_checkpoint_and_stays(
    checkpoints: Path, name: str
) -> None:
    (checkpoints / name).mkdir()
    assert found(checkpoints) == 9
    go_back(checkpoints.parent, None)
    assert (checkpoints / name).is_dir()


@pytest.mark.parametrize("kind", [*KINDS, Path.mkdir, Path.touch])
@pytest.mark.parametrize("name", ["manifest.json", STAGE])
def test_a_checkpoint_with_something_else_in_place_of_a_file_is_damaged(
    checkpoints: Path, kind: Callable[[Path], None], name: str
) -> None:
    (checkpoints / "step-9" / name).unlink()
    kind(checkpoints / "step-9" / name)
    assert found(checkpoints) == 8


@pytest.mark.parametrize("kind", [*KINDS, Path.touch])
def test_resume_is_refused_if_checkpoints_is_no_folder(
    checkpoints: Path, kind: Callable[[Path], None]
) -> None:
    shutil.rmtree(checkpoints)
    kind(checkpoints)
    with pytest.raises(ConfigError, match="its `checkpoints` is not a folder; remove it"):
        newest(checkpoints.parent)


FILE = {"name": STAGE, "size_bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "9"},
        {"step": True},
        {"epoch": None},
        {"cuts": "head"},
        {"cuts": [1]},
        {"metrics": [1]},
        {"metrics": {"loss": "1"}},
        {"files": {}},
        {"files": [{**FILE, "size_bytes": "1"}]},
        {"files": [{**FILE, "name": "../step-8/stage-0.safetensors"}]},
        {"files": [{**FILE, "name": "/etc/passwd"}]},
        {"files": [{"name": STAGE}]},
        {"parts": [1]},
        {"parts": [{"from": 0}]},
        {"counted": [{"conditions": {}, "workers": []}]},
    ],
    ids=str,
)
def test_a_manifest_with_wrong_types_is_damaged(checkpoints: Path, changes: dict[str, Any]) -> None:
    """The checksum is right for the changed content."""
    rewrite(checkpoints / "step-9" / "manifest.json", changes)
    assert found(checkpoints) == 8


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    said = {**json.loads(path.read_text()), **changes}
    del said["sha256"]
    path.write_text(json.dumps({**said, "sha256": digest_of(said)}))


def test_a_manifest_with_unknown_keys_is_accepted(checkpoints: Path) -> None:
    path = checkpoints / "step-9" / "manifest.json"
    files = [{**file, "more": 1} for file in json.loads(path.read_text())["files"]]
    rewrite(path, {"more": {"and": "more"}, "files": files})
    assert found(checkpoints) == 9


@pytest.mark.parametrize("content", ["[" * 99999, '{"a":' * 99999, "9" * 9999, "\udcff", ""])
def test_a_manifest_that_is_no_json_is_damaged(checkpoints: Path, content: str) -> None:
    path = checkpoints / "step-9" / "manifest.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert found(checkpoints) == 8


def test_a_file_that_the_manifest_does_not_list_is_not_read(checkpoints: Path) -> None:
    os.mkfifo(checkpoints / "step-9" / "stage-7.safetensors")
    tensors, _ = saved_tensors(checkpoints / "step-9")
    assert [*tensors] == ["model.head.weight"]


@pytest.mark.parametrize(
    "line",
    [
        '{"split": "test"}',
        '{"step": "9", "split": "test", "module": null}',
        '{"step": -1, "split": "test", "module": null}',
        '{"step": true, "split": "test", "module": null}',
        '{"step": 9, "split": ["test"], "module": null}',
        '{"step": 9, "split": "test", "module": {}}',
        '{"step": 9, "split": "test"}',
        '{"step": 9, "split": "test", "module": null, "seconds": "long"}',
        '{"step": 9, "split": "test", "module": null, "loss": NaN}',
        '{"step": 9, "split": "test", "module": null, "loss": 1e999}',
        '{"step": 9, "split": "test", "module": null, "loss": [1]}',
        '{"step": 1' + "0" * 400 + ', "split": "test", "module": null}',
        "[" * 99999,
    ],
    ids=lambda line: line[:60],
)
def test_malformed_lines_of_the_metrics_file_are_dropped(tmp_path: Path, line: str) -> None:
    good = '{"step": 9, "split": "test", "module": null, "loss": 1.0, "accuracy": 0.5}'
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n{good}\n{line}\n")
    metrics = Metrics(path, Classification(3), 1)
    assert (metrics.history("test"), metrics.written_until()) == ({9: 0.5}, 9)
    metrics.go_back(9, {"number": "x", "samples": None}, evaluated=True)
    assert path.read_text() == good + "\n"
    assert metrics.train_loss is None
