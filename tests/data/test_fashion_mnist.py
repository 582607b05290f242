import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from torchvision.datasets import FashionMNIST

from ppll_cli.data import fashion_mnist
from ppll_cli.data.fashion_mnist import DEBIAN, RAW, FashionMnist, read_idx
from ppll_cli.errors import ConfigError
from tests.data.published_files import Files, assert_read, write
from tests.data.scene_files import idx

Options = Callable[..., dict[str, Any]]
PIXELS = np.random.RandomState(0).randint(256, size=(14, 28, 28), dtype=np.uint8)


def plain() -> Files:
    """Return ten training and four test images."""
    return {
        "train-images-idx3-ubyte": idx(PIXELS[:10]),
        "train-labels-idx1-ubyte": idx(np.arange(10)),
        "t10k-images-idx3-ubyte": idx(PIXELS[10:]),
        "t10k-labels-idx1-ubyte": idx(np.array([9, 0, 1, 2])),
    }


def zipped() -> Files:
    return {f"{name}.gz": gzip.compress(content) for name, content in plain().items()}


def check(dataset: FashionMnist) -> None:
    assert_read(dataset, PIXELS[:10, None], PIXELS[10:, None], [9, 0, 1, 2])


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that takes the place of Debian's. It does not exist yet."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    return tmp_path / "debian"


@pytest.mark.parametrize("place", ["", RAW])
@pytest.mark.parametrize("files", [plain(), zipped()], ids=["plain", "gz"])
def test_a_root_may_have_either_layout_and_is_not_changed(
    options: Options, tmp_path: Path, contents: Callable[[Path], Files], place: str, files: Files
) -> None:
    root = tmp_path / "root"
    write(root / place, files)
    before = contents(root)
    for folder in (root / place, root):
        folder.chmod(0o555)
    check(FashionMnist(**options(root=str(root))))
    assert contents(root) == before
    for folder in (root, root / place):
        folder.chmod(0o755)


def test_debians_folder_is_used_without_a_root(options: Options, cache: Path, debian: Path) -> None:
    write(debian, zipped())
    check(FashionMnist(**options(download=False)))
    assert not cache.exists()


def test_the_cache_is_used_before_debians_folder(
    options: Options, cache: Path, debian: Path
) -> None:
    write(cache / RAW, plain())
    write(debian, dict.fromkeys(zipped(), b"wrong"))
    check(FashionMnist(**options()))


def test_debians_folder_is_not_used_with_a_given_root(
    options: Options, tmp_path: Path, debian: Path
) -> None:
    write(debian, zipped())
    root = tmp_path / "root"
    write(root, {})
    dataset = FashionMnist(**options(root=str(root), download=False))
    with pytest.raises(ConfigError, match=r"\(and 3 more\) there, .*data\.download=false"):
        dataset.prepare()
    with pytest.raises(ConfigError, match="has no train-images"):
        dataset.load()


TRAIN, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({TRAIN: plain()[TRAIN][:-1]}, "has 7839 bytes of data, not 7840"),
        ({TRAIN: plain()[TRAIN] + b"\0"}, "has 7841 bytes of data, not 7840"),
        ({TRAIN: plain()[TRAIN][:9]}, "ends after 9 bytes"),
        ({TRAIN: b""}, "begins with"),
        ({TRAIN: plain()[LABELS]}, "begins with 00000801, not 00000803"),
        ({TRAIN: idx(PIXELS[:10], magic=13)}, "begins with 00000d03, not 00000803"),
        ({TRAIN: bytes([0, 0, 8, 3]) + b"\xff" * 12}, "not 79228162458924105385300197375"),
        ({TRAIN: idx(PIXELS[:0]), LABELS: idx(PIXELS[:0, 0, 0])}, "holds no images"),
        ({TRAIN: idx(PIXELS[:10, :20])}, "the training images"),
        ({LABELS: idx(np.arange(9))}, "holds 10 images and 9 labels"),
        ({LABELS: idx(np.arange(10) + 1)}, "holds labels 1 to 10, not 0 to 9"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_corrupt_file_is_refused(
    options: Options, tmp_path: Path, change: Files, problem: str, packed: bool
) -> None:
    files = plain() | change
    if packed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    write(tmp_path, files)
    with pytest.raises(ConfigError, match=problem) as caught:
        FashionMnist(**options(root=str(tmp_path))).load()
    assert (caught.value.key, caught.value.value) == ("data.root", str(tmp_path))
    assert str(tmp_path) in caught.value.problem


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-9],
        lambda content: content[:40] + bytes(40) + content[80:],
        lambda content: b"not gzip",
        lambda content: b"",
    ],
)
def test_a_damaged_gz_file_is_refused_by_name(
    options: Options, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    files = zipped()
    write(tmp_path, files | {f"{TRAIN}.gz": damage(files[f"{TRAIN}.gz"])})
    with pytest.raises(ConfigError, match=f"{TRAIN}.gz: cannot be read"):
        FashionMnist(**options(root=str(tmp_path))).load()


def test_files_are_downloaded_in_torchvisions_layout(
    options: Options,
    cache: Path,
    debian: Path,
    serve: Callable[[dict[str, bytes]], str],
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], Files],
) -> None:
    url = serve(zipped())
    monkeypatch.setattr(FashionMNIST, "mirrors", [url.rsplit("/", 1)[0] + "/"])
    monkeypatch.setattr(FashionMNIST, "resources", [(name, None) for name in zipped()])
    check(FashionMnist(**options()))
    assert contents(cache) == {f"{RAW}/{name}": content for name, content in plain().items()}


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason=f"there is no {DEBIAN} on this machine")
def test_debians_own_files_are_read(options: Options, cache: Path) -> None:
    dataset = FashionMnist(**options(download=False))
    dataset.prepare()
    splits = dataset.load()
    assert splits["train"].images.shape == (60000, 1, 28, 28)
    assert splits["test"].images.shape == (10000, 1, 28, 28)
    assert splits["train"].labels.bincount().tolist() == [6000] * 10
    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "data" / "fashion_mnist.yaml")
    pixels = splits["train"].images.float() / 255
    assert pixels.mean().item() == pytest.approx(config.mean[0], abs=5e-5)
    assert pixels.std().item() == pytest.approx(config.std[0], abs=5e-5)


def test_an_idx_file_is_read_with_its_shape(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write(tmp_path, {"some-file": idx(array)})
    assert np.array_equal(read_idx(tmp_path / "some-file", 3), array)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]), "1569 bytes of data or more"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "4097 bytes of data or more, not 7922816"),
    ],
)
def test_a_gz_file_is_expanded_only_up_to_the_size_in_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes, problem: str
) -> None:
    """Otherwise a small file of zeros could fill the memory."""
    monkeypatch.setattr(fashion_mnist, "_MOST_BYTES", 4096)
    write(tmp_path, {"some-file.gz": gzip.compress(header + bytes(5_000_000))})
    tracemalloc.start()
    with pytest.raises(ValueError, match=problem):
        read_idx(tmp_path / "some-file.gz", 3)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_000_000
