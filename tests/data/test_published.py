"""Properties of every data set that has to be downloaded."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import pytest
from torchvision.datasets import CIFAR10

from ppll_cli.data import download, fashion_mnist
from ppll_cli.data.cifar10 import Cifar10
from ppll_cli.data.cifar100 import Cifar100
from ppll_cli.data.dataset import ImageDataset
from ppll_cli.data.fashion_mnist import FashionMnist
from ppll_cli.data.stl10 import Stl10
from ppll_cli.data.svhn import Svhn
from ppll_cli.errors import ConfigError

Options = Callable[..., dict[str, Any]]
ALL = [Cifar10, Cifar100, Svhn, Stl10, FashionMnist]


@pytest.fixture(autouse=True)
def _no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")


@pytest.mark.parametrize("kind", ALL)
def test_without_a_network_one_line_gives_a_remedy(
    options: Options, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: type[ImageDataset]
) -> None:
    def unreachable(*_: object, **__: object) -> NoReturn:
        raise URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(ConfigError) as caught:
        kind(**options()).prepare()
    message = str(caught.value)
    assert message.startswith("data.root=null: no ")
    assert "Temporary failure in name resolution" in message
    assert "by hand" in message
    assert "\n" not in message
    assert not list(cache.iterdir())


@pytest.mark.parametrize("kind", ALL)
def test_each_class_has_a_name(options: Options, kind: type[ImageDataset]) -> None:
    """CIFAR-100 once had the names of CIFAR-10, so each run on it was refused."""
    dataset = kind(**options())
    assert len(set(dataset.class_names)) == dataset.class_count == dataset.task.classes


@pytest.mark.parametrize("kind", ALL)
def test_a_forbidden_download_creates_no_folder(
    options: Options, cache: Path, kind: type[ImageDataset]
) -> None:
    with pytest.raises(ConfigError, match=r"data\.download=false"):
        kind(**options(download=False)).prepare()
    assert not cache.exists()


def test_a_download_ends_if_the_server_never_answers(
    options: Options, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SOCKET_TIMEOUT_S", 0.1)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar.gz")
        with pytest.raises(ConfigError, match="timed out"):
            Cifar10(**options()).prepare()
