"""The record of a run is complete, or it is refused by name. No content of it is trusted."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.record import OWN_FILES, OWN_FOLDERS, absolute, read_record, write_record
from ppll_cli.launch.resume import recorded
from tests.conftest import compose_config

Composed = tuple[dict[str, Any], dict[str, str]]


@pytest.fixture(scope="module")
def composed() -> Composed:
    """Return a configuration and its choices. No test changes them."""
    return compose_config(["data=synthetic", "optim.lr=0.25", "seed=7"])


@pytest.fixture
def folder(composed: Composed, tmp_path: Path) -> Path:
    """Return a run directory with a record that the program has written."""
    config, choices = composed
    folder = tmp_path / "run"
    folder.mkdir()
    write_record(folder, {**config, "choices": choices, "threads": 2, "cuts": ["blocks.4"]})
    return folder


def test_a_written_record_is_read_back(folder: Path) -> None:
    record = read_record(folder)
    before = recorded([f"resume={folder}"])
    assert before is not None
    assert (before.config["seed"], before.config["optim"]["lr"]) == (7, 0.25)
    assert (before.cuts, before.data_sha256) == (("blocks.4",), None)
    assert {"format", "sha256", "choices", "cuts"} <= {*record} - {*before.config}


def test_a_flipped_bit_is_refused_or_changes_nothing(folder: Path) -> None:
    """Of 16,736 flips, 183 once changed a number, and the run trained with it without a message."""
    path = folder / "config.json"
    whole, written = path.read_bytes(), read_record(folder)
    refused = []
    # 41 and 8 have no common divisor, so every bit of a byte is flipped
    for bit in range(0, 8 * len(whole), 41):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert read_record(folder) == written
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 12
    assert all("config.json" in message for message in refused)


@pytest.mark.parametrize("key", ["seed", "sha256", "format", "threads"])
@pytest.mark.parametrize("value", [None, 3, "other"])
def test_an_edited_record_is_refused(folder: Path, key: str, value: object) -> None:
    record = {**read_record(folder), key: value}
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"resume=.*: its config\.json (does not match|has form)"):
        recorded([f"resume={folder}"])


def test_a_record_without_its_digest_is_refused(folder: Path) -> None:
    record = read_record(folder)
    del record["sha256"]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="does not match its checksum"):
        recorded([f"resume={folder}"])


def test_the_order_and_layout_of_a_records_keys_do_not_matter(folder: Path) -> None:
    record = read_record(folder)
    (folder / "config.json").write_text(json.dumps(dict(reversed(record.items()))))
    assert read_record(folder) == record


def test_a_second_record_in_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is in use by another run"):
        write_record(folder, {})


def fifo(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def astray(path: Path) -> None:
    path.symlink_to("nowhere")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket may have only 108 bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = [fifo, loop, astray, a_socket, device]


@pytest.mark.parametrize("name", OWN_FILES + OWN_FOLDERS)
@pytest.mark.parametrize("make", [*KINDS, Path.mkdir, Path.touch])
def test_something_else_in_place_of_a_runs_file_is_refused_unopened(
    folder: Path, name: str, make: Callable[[Path], None]
) -> None:
    """The program once waited for a FIFO for ever."""
    path = folder / name
    path.unlink(missing_ok=True)
    make(path)
    if make is (Path.mkdir if name in OWN_FOLDERS else Path.touch) and name != "config.json":
        assert recorded([f"resume={folder}"]) is not None
        return
    with pytest.raises(ConfigError) as error:
        recorded([f"resume={folder}"])
    assert str(error.value).startswith(f"resume={folder}: it")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def deep_object(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record)[:-1] + ', "x": ' + '{"y":' * 200 + "1" + "}" * 201)


def huge(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


def latin(path: Path) -> None:
    path.write_bytes(b'{"caf\xe9": 1}')


def digits(path: Path) -> None:
    path.write_text("1" * 10_000)


@pytest.mark.parametrize("damage", [deep, deep_object, huge, latin, digits])
def test_a_record_that_cannot_be_read_is_refused(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    damage(folder / "config.json")
    with pytest.raises(ConfigError) as error:
        recorded([f"resume={folder}"])
    assert str(error.value).startswith(f"resume={folder}: it holds no config.json of a run (")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("make", KINDS)
def test_a_run_directory_that_is_no_folder_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "run")
    with pytest.raises(ConfigError, match="there is no such folder"):
        recorded([f"resume={tmp_path / 'run'}"])


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000])
def test_a_run_directory_with_an_impossible_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        recorded([f"resume={tmp_path / name}"])


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_folder_in_place_of_a_checkpoint_link_is_refused_and_kept(
    folder: Path, name: str
) -> None:
    """A copy that followed links has such a folder, and it may hold the only checkpoint."""
    (folder / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"its checkpoints/{name} is not a link to a checkpoint"):
        recorded([f"resume={folder}"])


def test_absolute_resolves_relative_paths_and_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    there = [str(tmp_path / "a"), "/home/me/b", "/c"]
    assert absolute(["a", "~/b", "/c"]) == there
    assert (absolute("a"), absolute(None)) == (there[0], None)
