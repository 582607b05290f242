"""Damaged data in the cache folder are made again. An index that cannot be written is not kept."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ppll_cli.data.fashion_scenes import FashionScenes
from ppll_cli.data.files import sample_name
from ppll_cli.data.kept import kept_folder
from ppll_cli.data.photos import Photos
from ppll_cli.data.voc import Voc
from ppll_cli.errors import ConfigError
from tests.data.picture_files import picture, write_photos
from tests.data.scene_files import write_fashion, write_voc
from tests.data.shipped import shipped

SMALL = {"patch": 8, "patches_per_epoch": 10, "tile": 16, "overlap": 3}
Damage = Callable[[Path], object]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"12345")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inner").write_text("")


def a_file(path: Path) -> None:
    """Replace the folder by a file."""
    shutil.rmtree(path.parent)
    path.parent.write_text("")


DAMAGES: list[Damage] = [emptied, cut, a_folder, Path.unlink]


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Photos]:
    folder = write_photos(tmp_path / "photos")
    given = {"folders": [str(folder)], "cache": str(tmp_path / "kept"), **SMALL}
    return lambda **changes: Photos(**shipped("photos", **(given | changes)))


@pytest.mark.parametrize("name", ["high.npy", "low.npy", "index.json"])
@pytest.mark.parametrize("damage", [*DAMAGES, a_file])
def test_damaged_decoded_pictures_are_decoded_again(
    photos: Callable[..., Photos], tmp_path: Path, name: str, damage: Damage
) -> None:
    wanted = [high.tobytes() for high in photos().load()["train"].pictures.high]
    for folder in (tmp_path / "kept").iterdir():
        damage(folder / name)
    for _ in range(2):
        pictures = photos().load()["train"].pictures
        assert [high.tobytes() for high in pictures.high] == wanted
    assert len(list((tmp_path / "kept").iterdir())) == 2  # no damaged folder is left


@pytest.mark.parametrize("damage", [*DAMAGES, a_file])
@pytest.mark.parametrize("name", ["pixels.npy", "objects.npz"])
def test_damaged_scenes_are_painted_again(
    tmp_path: Path, cache: Path, name: str, damage: Damage
) -> None:
    root = str(write_fashion(tmp_path / "root"))
    given = shipped("fashion_scenes", root=root, pictures=2, test_pictures=1, side=64)
    wanted = FashionScenes(**given).load()["train"]
    boxes = wanted.objects.boxes.tolist()
    for folder in (cache / "fashion_scenes").iterdir():
        damage(folder / name)
    again = FashionScenes(**given).load()["train"]
    assert again.objects.boxes.tolist() == boxes
    assert again[1].pixels.shape == (64, 64, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [emptied, cut, longer, a_folder])
def test_a_damaged_index_is_made_again(tmp_path: Path, cache: Path, damage: Damage) -> None:
    given = shipped("voc", root=str(write_voc(tmp_path / "root", ["2007"])), years="07")
    boxes = Voc(**given).load()["train"].objects.boxes.tolist()
    for path in list((cache / "scenes").iterdir()):
        damage(path)
    for _ in range(2):
        assert Voc(**given).load()["train"].objects.boxes.tolist() == boxes
    assert all(path.is_file() for path in (cache / "scenes").iterdir())


def test_a_run_works_if_its_index_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    given = shipped("voc", root=str(write_voc(tmp_path / "root", ["2007"])), years="07")
    assert len(Voc(**given).load()["train"]) == 4
    assert "set XDG_CACHE_HOME to another folder" in caplog.text


def test_a_cache_of_pictures_that_cannot_be_written_is_refused(
    photos: Callable[..., Photos], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data.cache=.*file: the cache folder cannot be"):
        photos(cache=str(tmp_path / "file")).load()


def text_of(folder: Path) -> str:
    return (folder / "text").read_text()


def made_with(text: str) -> Callable[[Path], None]:
    """Return a function that fills a folder of the cache with a text."""

    def make(folder: Path) -> None:
        (folder / "text").write_text(text)

    return make


def test_a_folder_that_could_not_be_read_once_stays(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    tried: list[Path] = []

    def fails_once(folder: Path) -> str:
        tried.append(folder)
        if len(tried) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return text_of(folder)

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept_folder(kept, made_with("long work"), text_of)
    with pytest.raises(ConfigError, match="No space left"):
        kept_folder(kept, full, fails_once)
    assert text_of(kept) == "long work"
    tried.clear()
    assert kept_folder(kept, made_with("other"), fails_once) == "long work"
    assert text_of(kept) == "long work"


def test_a_folder_that_another_run_has_replaced_stays(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        kept_folder(tmp_path / "kept", made_with("first"), text_of)
        made_with("second")(folder)

    (tmp_path / "kept").write_text("damaged")
    assert kept_folder(tmp_path / "kept", slow, text_of) == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_is_listed_twice_is_refused(
    photos: Callable[..., Photos], tmp_path: Path
) -> None:
    """If it were listed twice, the run would train on its test pictures."""
    folder, link = tmp_path / "photos", tmp_path / "link"
    link.symlink_to(folder)
    for other in (folder, link, f"{tmp_path}/./photos/", f"{tmp_path}/link/../photos"):
        with pytest.raises(ConfigError, match=r"is the same folder as .*photos; list each folder"):
            photos(folders=[str(folder), str(other)]).load()
    (folder / "9.png").symlink_to(folder / "0.png")
    with pytest.raises(ConfigError, match=r"9.png: is the same file as .*0.png"):
        photos().load()


@pytest.mark.parametrize("side", [1, 10, 15])
def test_a_test_picture_that_is_too_small_is_refused_by_name(
    photos: Callable[..., Photos], tmp_path: Path, side: int
) -> None:
    """A small picture once caused a ZeroDivisionError or a RuntimeError."""
    picture(0, side, side).save(tmp_path / "photos" / "9.png")
    with pytest.raises(ConfigError, match=r"9.png: has .* it needs at least 16x16"):
        photos().load()
    picture(0, 16, 16).save(tmp_path / "photos" / "9.png")
    photos().load()


def test_samples_have_unique_and_safe_names() -> None:
    names = [sample_name(number, Path(f"{folder}/0.png")) for number, folder in enumerate("ab")]
    assert names == ["0-0.png", "1-0.png"]
    assert sample_name(3, None) == "3.png"
    assert len(sample_name(3, Path("é" * 120 + ".png")).encode()) < 255
    assert sample_name(3, Path("a\nb\x1b.png")) == "3-a_b_.png"
