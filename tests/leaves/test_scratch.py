"""Temporary folders of a process, and the removal of folders that ended processes have left."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.leaves import scratch as folders
from ppll_cli.leaves.scratch import remove, scratch, socket_folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder that TMPDIR names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folders, "LONGEST_FOLDER", len(str(tmp_path)) + 40)
    monkeypatch.setattr(folders, "_OWN", {})
    yield tmp_path
    remove()


def base(place: Path) -> Path:
    return place / f"ppll-run-{os.getuid()}"


def test_temporary_files_are_in_one_private_folder_that_is_removed(place: Path) -> None:
    sockets = socket_folder()
    assert socket_folder() == sockets
    with scratch() as folder:
        (folder / "file").write_text("content")
        assert folder.parent == sockets
        assert [*place.iterdir()] == [base(place)]
        assert base(place).stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    assert sockets.exists()
    remove()
    assert [*place.iterdir()] == []


def test_a_signal_handler_removes_folders_that_are_in_use(place: Path) -> None:
    with scratch() as folder:
        (folder / "file").write_text("content")
        remove()
        assert [*place.iterdir()] == []


def test_the_folder_is_removed_after_multiprocessings_sockets(tmp_path: Path) -> None:
    """A listener removes its socket at exit.

    If the folder was removed first, it printed a traceback.
    """
    code = (
        "import multiprocessing\n"
        "from multiprocessing.connection import Listener\n"
        "from ppll_cli.leaves.scratch import socket_folder\n"
        "multiprocessing.current_process()._config['tempdir'] = str(socket_folder())\n"
        "listener = Listener(family='AF_UNIX')\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [*tmp_path.iterdir()] == []


def left(place: Path, name: str) -> Path:
    """Make the folder and the lock file that a killed process leaves."""
    folder = base(place) / f"{folders._host()}-{name}"
    (folder / "tmp1" / ".step-3.unfinished").mkdir(parents=True)
    folder.with_name(f"{folder.name}.lock").touch()
    return folder


def test_the_next_start_removes_folders_of_dead_processes(place: Path) -> None:
    """Folders of another machine stay, because this machine does not see its locks."""
    dead, alive = left(place, "dead"), left(place, "alive")
    elsewhere = base(place) / "00000000-dead"
    elsewhere.mkdir()
    elsewhere.with_name("00000000-dead.lock").touch()
    stranger = place / "pymp-of-another-program"
    stranger.mkdir()
    with alive.with_name(f"{alive.name}.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        own = socket_folder()
        names = {path.name for path in base(place).iterdir()}
        kept = {each.name for each in (alive, elsewhere, own)}
        assert names == kept | {f"{name}.lock" for name in kept}
    assert not dead.exists()
    assert stranger.exists()


def test_a_folder_of_this_process_is_not_removed(place: Path) -> None:
    """Another start opens the lock file again, and must not regard the folder as a leftover."""
    own = socket_folder()
    folders._clear(base(place))
    assert own.exists()


def test_a_lock_file_that_is_a_link_is_not_followed(place: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    base(place).mkdir(mode=0o700)
    (base(place) / f"{folders._host()}-x.lock").symlink_to(victim / "lock")
    (base(place) / f"{folders._host()}-x").symlink_to(victim)
    socket_folder()
    assert [*victim.iterdir()] == []


@pytest.mark.parametrize("kind", ["link", "file"])
def test_something_else_in_place_of_the_folder_is_not_used(place: Path, kind: str) -> None:
    victim = place / "victim"
    victim.mkdir()
    if kind == "link":
        base(place).symlink_to(victim)
    else:
        base(place).touch()
    own = socket_folder()
    assert own.parent.parent == place
    assert own.parent != base(place)
    assert own.parent.stat().st_mode & 0o777 == 0o700
    assert [*victim.iterdir()] == []
    remove()
    assert sorted(place.iterdir()) == sorted([victim, base(place)])


def test_a_folder_that_others_can_write_is_made_private(place: Path) -> None:
    base(place).mkdir()
    base(place).chmod(0o777)
    socket_folder()
    assert base(place).stat().st_mode & 0o777 == 0o700


def test_sockets_move_to_a_shorter_path_and_files_stay(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clusters often have a long TMPDIR.

    With 100 characters the start failed: AF_UNIX path too long.
    """
    short, long = place / "s", place / ("x" * 100)
    short.mkdir()
    long.mkdir()
    monkeypatch.setattr(folders, "SHORT_PLACES", (str(short),))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert socket_folder().is_relative_to(short)
    with scratch() as folder:
        assert folder.is_relative_to(long)
    remove()
    assert [*short.iterdir()] == [*long.iterdir()] == []
    monkeypatch.setattr(folders, "SHORT_PLACES", (str(place / "not-there"),))
    with pytest.raises(ConfigError, match=r"^TMPDIR=.*; set TMPDIR to a short path$"):
        socket_folder()


def test_a_missing_folder_for_temporary_files_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "not-there"))
    with pytest.raises(ConfigError, match=r"^TMPDIR=.*no temporary folder can be made"), scratch():
        pass
