"""Fixtures for the tests of data sets."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.data import augment, batches, randaugment
from ppll_cli.data.pictures import patches
from ppll_cli.data.scenes import batches as scene_batches
from ppll_cli.data.voc import Voc
from tests.data.scene_files import write_voc
from tests.data.shipped import shipped
from tests.data.small_voc import MakeVoc
from tests.no_waiting import NoWaiting

SHARED = {
    "root": None,
    "download": True,
    "val_fraction": 0.0,
    "drop_last": False,
    "eval_limit": None,
    "mean": [0.5],
    "std": [0.25],
    "pad": 0,
    "pad_mode": "zeros",
    "flip": False,
}


@pytest.fixture
def options() -> Callable[..., dict[str, Any]]:
    """Return a function: the keyword arguments that every data set takes, with changes."""
    return lambda **changes: SHARED | changes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder of the user, which data sets with `root=None` use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppll-run" / "data"


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads every file below a folder, by path."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> NoWaiting:
    """Return a mode in which only `to_device` may copy batches to the device."""
    mode = NoWaiting()
    for module in (augment, randaugment, batches, patches, scene_batches):
        monkeypatch.setattr(module, "to_device", mode.staged)
    return mode


class Quiet(SimpleHTTPRequestHandler):
    """Answers requests of a web server, and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Return a function that serves files on this machine, and returns the first file's URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()

    def files(contents: dict[str, bytes]) -> str:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return f"http://127.0.0.1:{server.server_port}/{next(iter(contents))}"

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield files
        server.shutdown()
        thread.join(10)


@pytest.fixture
def make_voc(tmp_path: Path, cache: Path) -> MakeVoc:
    """Return a function that makes a small VOC 2007, with changes.

    Pictures have 50x40 pixels and are enlarged by 1.5.
    """
    root = write_voc(tmp_path / "root", ["2007"])
    small = {"years": "07", "root": str(root), "short_side": 60, "long_side": 90, "flip": False}
    return lambda **changes: Voc(**shipped("voc", **(small | changes)))
