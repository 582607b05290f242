"""A resumed run uses the data with which it was started, wherever they are now."""

import json
import shutil
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.beginning import check_data
from ppll_cli.launch.resume import Recorded
from tests.conftest import Result, Runner, assert_same, resumed
from tests.data.scene_files import write_fashion

CASE = ["data=fashion_mnist", "model.dim=16", "model.depth=2", "model.heads=2", "batch_size=5"]
CASE += ["schedule=bp", "epochs=2", "optim.schedule=constant"]


@pytest.fixture
def started(tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Return a run that was started in the folder that contains its data."""
    write_fashion(tmp_path / "work" / "data")
    monkeypatch.chdir(tmp_path / "work")
    result = run(*CASE, "data.root=data", "max_steps=3")
    monkeypatch.chdir(tmp_path)
    return result


def spoil(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


@pytest.mark.slow
def test_a_run_is_resumed_from_another_current_directory(
    tmp_path: Path, started: Result, run: Runner
) -> None:
    """In the other directory, the relative path leads to other data."""
    record = json.loads((started.run_dir / "config.json").read_text())
    assert record["data"]["root"] == str(tmp_path / "work" / "data")
    write_fashion(tmp_path / "data")
    spoil(tmp_path / "data")
    expected = run(*CASE, f"data.root={tmp_path / 'work' / 'data'}")
    assert_same(resumed(started, "max_steps=null").tensors(), expected.tensors())


def test_a_run_is_resumed_after_its_data_were_moved(tmp_path: Path, started: Result) -> None:
    shutil.move(tmp_path / "work" / "data", tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"data\.root=.*: is not a folder that can be read"):
        resumed(started, "max_steps=6")
    assert resumed(started, "max_steps=6", "data.root=moved").summary["steps"] == 6


@pytest.mark.parametrize("known", [True, False])
def test_resuming_with_changed_data_is_refused(
    tmp_path: Path, started: Result, known: bool
) -> None:
    """The message names the entry that differs, if the record lists the entries."""
    spoil(tmp_path / "work" / "data")
    if not known:
        (started.run_dir / "data-files.json").write_text('{"train": 1}')
    with pytest.raises(ConfigError) as error:
        resumed(started, "max_steps=6")
    how = "images in train has changed" if known else "what differs is not recorded"
    problem = f"these are not the data that the run was started with: {how}"
    assert str(error.value) == (
        f"data.root={tmp_path / 'work' / 'data'}: {problem}; give the folder with the "
        "original data, or start a new run"
    )


@pytest.mark.parametrize(("limit", "told"), [(None, False), (8, True)])
def test_a_changed_choice_of_evaluated_pictures_is_explained(
    tmp_path: Path, limit: int | None, told: bool
) -> None:
    """Earlier versions chose the first pictures, so the identity of the data differs."""
    before = Recorded(tmp_path, {}, {}, data_sha256="another digest")
    with pytest.raises(ConfigError, match=r"^data\.root=a: these are not the data") as error:
        check_data(before, {"root": "a", "eval_limit": limit}, {"train": [("a.png", 3)]})
    assert (
        "earlier versions of ppll-run chose other labelled pictures" in str(error.value)
    ) == told


def test_a_run_without_a_data_digest_is_resumed_unchecked(tmp_path: Path, started: Result) -> None:
    path = started.run_dir / "config.json"
    record = json.loads(path.read_text())
    for key in ("sha256", "data_sha256"):
        del record[key]
    path.write_text(json.dumps({**record, "format": 1}))
    spoil(tmp_path / "work" / "data")
    assert resumed(started, "max_steps=6").summary["steps"] == 6
