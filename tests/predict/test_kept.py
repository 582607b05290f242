"""Times that earlier programs kept. No problem with their files stops a program."""

import json
import os
from pathlib import Path

import pytest

from ppll_cli.config import settings
from ppll_cli.predict.kept import Kept
from ppll_cli.prepare.preparation import prepare
from tests.conftest import compose_config
from tests.predict.given import SMALL

LOSS = {"forward_s": 1.5, "backward_s": 0.0, "saved_bytes": 8, "params": 3, "frozen_bytes": 16}
RECORDS = {
    "unit 1": {**LOSS, "recomputed_bytes": 4},
    "auxiliary 2": LOSS,
    "copy 512": {"seconds": 2e-6},
    "parameter": {"step_s": 1e-9, "bytes": 16.0},
}


def test_written_records_are_read_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept(tmp_path / "a" / "b")
    assert kept.read("x.json") == {}
    kept.write("x.json", RECORDS)
    assert Kept(tmp_path / "a" / "b").read("x.json") == RECORDS
    assert not caplog.messages


def changed(key: str, **fields: object) -> str:
    return json.dumps({**RECORDS, key: {**RECORDS.get(key, {}), **fields}})


DAMAGED = {
    "empty": "",
    "cut short": json.dumps(RECORDS)[:-3],
    "a list": "[1]",
    "a number": "7",
    "null": "null",
    "deep": "[" * 100_000,
    "deep inside": '{"unit 1": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "NaN": changed("unit 1", forward_s=float("nan")),
    "infinity": changed("unit 1", forward_s=float("inf")),
    "negative": changed("unit 1", forward_s=-1.0),
    "huge": changed("unit 1", forward_s=1e308),
    "a huge integer": changed("unit 1", params=10**400),
    "digits without end": '{"unit 1": ' + "9" * 10_000 + "}",
    "text": changed("copy 512", seconds="2"),
    "truth": changed("copy 512", seconds=True),
    "no record": json.dumps({**RECORDS, "copy 512": 2.0}),
    "one field more": changed("copy 512", other=1.0),
    "one field less": json.dumps({"parameter": {"step_s": 1.0}}),
    "another key": json.dumps({"speed 1": {"seconds": 1.0}}),
}


@pytest.mark.parametrize("content", [pytest.param(c, id=name) for name, c in DAMAGED.items()])
def test_a_damaged_file_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    kept = Kept(tmp_path)
    assert kept.read("x.json") == {}
    (line,) = caplog.messages
    assert line.startswith(f"the times kept in {path} cannot be read, and the file is replaced: ")
    assert "\n" not in line
    assert len(line) < 500
    kept.write("x.json", RECORDS)
    assert kept.read("x.json") == RECORDS
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("kind", ["bytes", "folder", "full folder", "fifo", "device", "loop"])
def test_anything_else_in_place_of_the_file_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Reading a FIFO would wait for ever, and /dev/zero has no end."""
    path = tmp_path / "x.json"
    match kind:
        case "bytes":
            path.write_bytes(b"\xff\xfe{}")
        case "folder":
            path.mkdir()
        case "full folder":
            path.mkdir()
            (path / "theirs").write_text("kept")
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
    kept = Kept(tmp_path)
    assert kept.read("x.json") == {}
    kept.write("x.json", RECORDS)
    assert kept.read("x.json") == RECORDS
    assert len(caplog.messages) == 1
    if kind == "full folder":
        assert (tmp_path / "x.json.aside" / "theirs").read_text() == "kept"


def test_times_are_not_kept_if_the_folder_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "folder")
    assert kept.read("x.json") == {}
    kept.write("x.json", RECORDS)
    kept.write("y.json", RECORDS)
    (line,) = caplog.messages
    assert line.startswith("measured times cannot be kept for the next run: ")


@pytest.mark.parametrize("damage", ["files", "folder"])
def test_a_run_is_prepared_despite_damaged_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A damaged file once ended this run, and all later runs, with a traceback."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ppll_cli.predict.speed.usable_cores", lambda: 1)
    config, _ = compose_config([*SMALL, "partition=profile", "gpus=2"])
    folder = tmp_path / "ppll-run" / "profile"
    if damage == "files":
        prepare(settings.parse(config), "unused")
        (file,) = folder.iterdir()
        before = json.loads(file.read_text())
        file.write_text(file.read_text()[:-20])
    else:
        folder.parent.mkdir()
        folder.write_text("")
    caplog.clear()
    assert any("predicted: " in note for note in prepare(settings.parse(config), "unused").notes)
    assert len(caplog.messages) == 1
    if damage == "files":
        assert json.loads(file.read_text()).keys() == before.keys()
