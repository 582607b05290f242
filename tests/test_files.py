import json
import os
from pathlib import Path

import pytest

from ppll_cli.files import read_json_lines, remove_scratch, scratch, write_json, write_text


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for value in ({"a": [1, None]}, 7):
        write_json(path, value)
        assert json.loads(path.read_text()) == value
        assert [*tmp_path.iterdir()] == [path]


def test_what_was_there_stays_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", float("nan"))
    assert not [*tmp_path.iterdir()]


def test_lines_that_are_no_whole_objects_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert list(read_json_lines(file)) == []
    file.write_text('{"a": 1}\n[2]\nnot JSON\n\n{"a": 3}\n{"a": 4')
    assert list(read_json_lines(file)) == [{"a": 1}, {"a": 3}]


def test_a_scratch_folder_is_there_for_a_while() -> None:
    with scratch() as folder:
        (folder / "file").write_text("content")
    assert not folder.exists()


def test_a_signal_handler_removes_scratch_folders() -> None:
    with scratch() as folder:
        (folder / "file").write_text("content")
        remove_scratch()
        assert not folder.exists()
