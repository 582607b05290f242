import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from ppll_cli.data import download
from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.download import provide
from ppll_cli.data.files import Part
from ppll_cli.errors import ConfigError

Options = Callable[..., dict[str, Any]]
URL = "https://example.org/pixels/"
FILES = ("pixels/a.bin", "pixels/b.bin", "pixels/a.bin")


class Pixels(ImageDataset):
    class_count = 2
    channel_count = 1

    def read(self, part: Part) -> Arrays:
        return Arrays(np.zeros((2, 1, 2, 2), np.uint8), np.arange(2), part)


def fetch(folder: Path) -> None:
    """Download the files, and one more that is not needed."""
    (folder / "pixels").mkdir()
    for name in ("a", "b", "c"):
        (folder / "pixels" / f"{name}.bin").write_text(name)


def never(folder: Path) -> None:
    pytest.fail("nothing was to be downloaded")


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return an event for which a hanging download waits.

    Limits are short, and its thread ends with the test.
    """
    monkeypatch.setattr(download, "FIRST_BYTE_S", 0.05)
    monkeypatch.setattr(download, "STALL_S", 0.1)
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "download":
            thread.join(10)


def test_missing_files_are_moved_to_the_root_and_nothing_else(
    options: Options, cache: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    provide(Pixels(**options()), FILES, URL, fetch)
    assert contents(cache) == {"pixels/a.bin": b"a", "pixels/b.bin": b"b"}
    assert [path.name for path in cache.iterdir()] == ["pixels"]


def test_all_downloaded_files_can_be_moved_with_the_requested_one_last(
    options: Options,
    cache: Path,
    contents: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The requested file is moved last. While it is missing, the other files may be incomplete."""
    moved: list[str] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        moved.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    provide(Pixels(**options()), FILES[:1], URL, fetch, everything=True)
    assert list(contents(cache)) == [f"pixels/{name}.bin" for name in "abc"]
    assert moved[-1] == "a.bin"


def test_existing_files_are_kept(options: Options, tmp_path: Path) -> None:
    (tmp_path / "pixels").mkdir()
    (tmp_path / "pixels" / "a.bin").write_text("mine")
    dataset = Pixels(**options(root=str(tmp_path)))
    provide(dataset, FILES, URL, fetch)
    assert (tmp_path / "pixels" / "a.bin").read_text() == "mine"
    provide(dataset, FILES, URL, never)


def test_a_forbidden_download_names_the_missing_files(options: Options, tmp_path: Path) -> None:
    dataset = Pixels(**options(root=str(tmp_path), download=False))
    with pytest.raises(ConfigError) as caught:
        provide(dataset, FILES, URL, never)
    assert str(caught.value) == (
        f"data.root={tmp_path}: no pixels/a.bin (and 1 more) there, and "
        f"data.download=false; allow data.download=true, fetch {URL} by hand, so that "
        f"{tmp_path}/pixels/a.bin exists, or give another data.root"
    )
    assert not list(tmp_path.iterdir())


def test_a_failed_download_is_reported_in_one_line_with_a_remedy(
    options: Options, cache: Path
) -> None:
    def failing(folder: Path) -> None:
        fetch(folder)
        raise URLError("Temporary failure\nin name resolution")

    with pytest.raises(ConfigError) as caught:
        provide(Pixels(**options()), FILES, URL, failing)
    assert str(caught.value) == (
        f"data.root=null: no pixels/a.bin (and 1 more) in {cache}, and the download of {URL} "
        f"failed (urlopen error Temporary failure in name resolution); fetch {URL} by hand, so "
        f"that {cache}/pixels/a.bin exists, or give another data.root"
    )
    assert not list(cache.iterdir())


def test_a_hanging_download_is_abandoned(
    options: Options, cache: Path, release: threading.Event
) -> None:
    def hanging(folder: Path) -> None:
        release.wait(60)

    with pytest.raises(ConfigError, match=r"no data for 0\.05 s"):
        provide(Pixels(**options()), FILES, URL, hanging)
    left = [thread for thread in threading.enumerate() if thread.name == "download"]
    assert [thread.daemon for thread in left] == [True]  # so the process can exit


def test_a_stalled_download_is_abandoned(
    options: Options, cache: Path, release: threading.Event
) -> None:
    def stalling(folder: Path) -> None:
        (folder / "half").write_text("some")
        release.wait(60)

    with pytest.raises(ConfigError, match=r"no data for 0\.1 s"):
        provide(Pixels(**options()), FILES, URL, stalling)


def test_sockets_have_a_timeout_only_during_a_download(options: Options, cache: Path) -> None:
    seen: list[float | None] = []

    def looking(folder: Path) -> None:
        seen.append(socket.getdefaulttimeout())
        raise OSError("enough")

    before = socket.getdefaulttimeout()
    with pytest.raises(ConfigError):
        provide(Pixels(**options()), FILES, URL, looking)
    assert seen == [download.SOCKET_TIMEOUT_S]
    assert socket.getdefaulttimeout() == before


def test_timeouts_are_shorter_than_20_seconds() -> None:
    assert max(download.SOCKET_TIMEOUT_S, download.FIRST_BYTE_S) < 20


def test_a_folder_that_cannot_be_written_is_refused_by_name(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="the folder cannot be written to"):
        provide(Pixels(**options()), FILES, URL, never)
