"""Identity of data: a copy elsewhere has the same one. A message names the differences."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config.targets import make
from ppll_cli.data.identity import Entry, difference, files_in
from ppll_cli.leaves.files import digest_of
from tests.conftest import compose_config
from tests.data.picture_files import picture, write_photos
from tests.data.scene_files import write_coco, write_fashion

Place = Callable[[Path], list[str]]


def photos(folder: Path) -> list[str]:
    return ["data=photos", f"data.folders=[{folder}]", f"data.cache={folder.parent}"]


def coco(folder: Path) -> list[str]:
    return ["data=coco", f"data.root={folder}"]


def fashion(folder: Path) -> list[str]:
    return ["data=fashion_mnist", f"data.root={folder}"]


def scenes(folder: Path) -> list[str]:
    sizes = ["data.pictures=3", "data.test_pictures=2", "data.side=64"]
    return ["data=fashion_scenes", f"data.root={folder}", *sizes]


WRITERS: dict[Place, Callable[[Path], Any]] = {
    photos: lambda folder: write_photos(folder, width=128, height=120),
    coco: write_coco,
    fashion: write_fashion,
    scenes: write_fashion,
}


def identity(place: Place, folder: Path) -> Any:
    config, _ = compose_config(place(folder))
    dataset = make("data", config["data"])
    return json.loads(json.dumps(dataset.identity(dataset.load())))


@pytest.mark.parametrize("place", WRITERS)
def test_a_copy_elsewhere_has_the_same_identity(tmp_path: Path, cache: Path, place: Place) -> None:
    WRITERS[place](tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    found = [identity(place, tmp_path / name) for name in ("here", "there")]
    assert found[0] == found[1]
    assert found[0].keys() == {"train", "test"}
    assert all(found[0].values())


def test_an_added_picture_is_named(tmp_path: Path) -> None:
    """One more picture can move others between the training set and the test set."""
    folder = write_photos(tmp_path / "here", width=128, height=120)
    before = identity(photos, folder)
    picture(3, 130, 130).save(folder / "2b.png")
    now = identity(photos, folder)
    assert difference(now, before) == "2b.png is new in train, which has 4 entries instead of 3"
    assert difference(before, now) == "2b.png is missing in train, which has 3 entries instead of 4"
    (folder / "2b.png").rename(folder / "9.png")
    assert difference(identity(photos, folder), before).startswith("3.png is new in train")


def test_files_are_told_from_digests() -> None:
    found: list[Entry] = [("boxes", "ab"), ("classes", "cat, dog"), ("1.jpg", 10), ("2.jpg", 20)]
    assert files_in(found) == {("1.jpg", 10), ("2.jpg", 20)}


def test_a_replaced_picture_is_named(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "here", width=128, height=120)
    before = identity(photos, folder)
    picture(4, 300, 300).save(folder / "1.png")
    assert difference(identity(photos, folder), before) == "1.png in train has changed"


def test_changed_annotations_change_the_identity(tmp_path: Path, cache: Path) -> None:
    root = write_coco(tmp_path / "here")
    before = identity(coco, root)
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("4.5", "4.6"))
    assert difference(identity(coco, root), before) == "boxes in train has changed"


def test_changed_pixels_change_the_identity(tmp_path: Path) -> None:
    root = write_fashion(tmp_path / "here")
    before = identity(fashion, root)
    path = root / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    now = identity(fashion, root)
    assert difference(now, before) == "images in test has changed"
    assert digest_of(now) != digest_of(before)
