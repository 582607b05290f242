import json
import os
from pathlib import Path

import pytest

from ppll_cli.leaves.files import make_folder, read_json_lines, write_json, write_text


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for value in ({"a": [1, None]}, 7):
        write_json(path, value)
        assert json.loads(path.read_text()) == value
        assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_stays_if_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)) as caught:
        write_text(path, "after")
    assert caught.value is error
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", float("nan"))
    assert not [*tmp_path.iterdir()]


def test_lines_that_are_not_complete_objects_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert list(read_json_lines(file)) == []
    file.write_text('{"a": 1}\n[2]\nnot JSON\n\n{"a": 3}\n{"a": 4')
    assert list(read_json_lines(file)) == [{"a": 1}, {"a": 3}]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Otherwise anybody who can write into the folder could have a file of the user overwritten."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".file.{os.getpid()}").symlink_to(victim)
    (tmp_path / "file").symlink_to(victim)
    write_text(tmp_path / "file", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()


def test_writing_into_a_linked_folder_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="a link is where a folder should be"):
        make_folder(tmp_path / "link")
