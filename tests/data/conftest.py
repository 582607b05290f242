"""What the tests of data sets share."""

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
    """The keyword arguments that every data set takes, with changes."""
    return lambda **changes: SHARED | changes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user's, for `root=None`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppll-run" / "data"


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file under a folder, to see that nothing changed."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> NoWaiting:
    """Within it, batch makers may copy to the device by `to_device` alone."""
    mode = NoWaiting()
    for module in (augment, randaugment, batches, patches, scene_batches):
        monkeypatch.setattr(module, "to_device", mode.staged)
    return mode


class Quiet(SimpleHTTPRequestHandler):
    """A web server that logs nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Serves files on this machine; returns the address of the first."""
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
