"""Pascal VOC: content of annotations, pictures of a split, and the kept index."""

import os
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import voc as torchvision_voc

from ppll_cli.config.targets import require
from ppll_cli.data import voc
from ppll_cli.data.scenes.index import Scene, Scenes
from ppll_cli.data.voc import CLASSES, YEARS, Voc
from ppll_cli.errors import ConfigError
from ppll_cli.prepare.loading import DATA_SET
from tests.data.published_files import extracts_an_archive
from tests.data.scene_files import voc_xml, write_voc
from tests.data.shipped import shipped

Make = Callable[..., Voc]


@pytest.fixture
def make(tmp_path: Path, cache: Path) -> Make:
    """Return a function that makes the data set with four pictures per list, with changes."""
    root = write_voc(tmp_path / "root")
    return lambda **changes: Voc(**shipped("voc", **({"root": str(root)} | changes)))


def names(scenes: Scenes) -> list[str]:
    return [
        str(scenes[number].pixels).rsplit("VOC", 1)[1].replace("/JPEGImages", "")
        for number in range(len(scenes))
    ]


def said(scene: Scene) -> list[tuple[str, list[float], bool]]:
    return [
        (CLASSES[label], box, ignored)
        for label, box, ignored in zip(
            scene.labels.tolist(), scene.boxes.tolist(), scene.ignored.tolist(), strict=True
        )
    ]


def test_boxes_count_from_zero_and_include_their_last_pixel(make: Make) -> None:
    """Difficult objects are ignored, and boxes without area are dropped.

    Pictures without objects stay.
    """
    test = make().load()["test"]
    assert [said(test[number]) for number in range(4)] == [
        [("dog", [8, 4, 30, 24], False), ("person", [20, 10, 48, 39], True)],
        [],
        [("cat", [0, 0, 50, 40], False)],
        [("car", [0, 9.5, 50, 20], False)],
    ]
    scene = test[0]
    assert scene.boxes.dtype == np.float32
    assert scene.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("years", "train", "test"),
    [
        ("07", ["2007/trainval"], ["2007/test"]),
        ("12", ["2012/train"], ["2012/val"]),
        (12, ["2012/train"], ["2012/val"]),  # the command line gives a number
        (7, ["2007/trainval"], ["2007/test"]),  # YAML reads 07 as 7
        ("07+12", ["2007/trainval", "2012/trainval"], ["2007/test"]),
    ],
)
def test_years_select_lists_of_pictures(
    make: Make, years: str | int, train: list[str], test: list[str]
) -> None:
    splits = make(years=years).load()
    for split, wanted in (("train", train), ("test", test)):
        files = [f"{name}{number:06}.jpg" for name in wanted for number in (1, 2, 3, 4)]
        assert names(splits[split]) == files


def test_the_task_has_the_classes_and_the_largest_number_of_boxes(make: Make) -> None:
    task = make().task
    assert (len(task.classes), task.boxes, task.crowds) == (20, 2, False)
    assert (task.height, task.width, task.anchor) == (1024, 1024, 32)


def test_only_changed_annotations_are_read_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    before = make().load()["train"]
    read: list[Path] = []
    parse = voc.parse
    monkeypatch.setattr(voc, "parse", lambda path: read.append(path) or parse(path))  # type: ignore[func-returns-value]
    again = make().load()["train"]
    assert not read
    assert (before.objects.boxes == again.objects.boxes).all()
    assert len(list((cache / "scenes").iterdir())) == 2
    changed = tmp_path / "root/VOCdevkit/VOC2007/Annotations/trainval000002.xml"
    changed.write_text(voc_xml("trainval000002", [("sofa", (1, 1, 9, 9), False)]))
    assert said(make().load()["train"][1]) == [("sofa", [0, 0, 9, 9], False)]
    assert len(read) == 8


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:100], lambda content: content.replace(b"test000003", b"test000002")],
)
def test_a_damaged_index_is_made_again(
    make: Make,
    cache: Path,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = names(make().load()["test"])
    for path in (cache / "scenes").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert names(make().load()["test"]) == before
    assert "in the cache is damaged" in caplog.text


def test_the_root_is_not_changed(
    make: Make, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    before = contents(tmp_path / "root")
    make().prepare()
    assert contents(tmp_path / "root") == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("<annotation>", r"is not an annotation \(no element found"),
        ("<annotation></annotation>", r"is not an annotation \(it has no size/height\)"),
        (voc_xml("x", [("unicorn", (1, 1, 9, 9), False)]), "there is no class 'unicorn'"),
        (voc_xml("x", [("cat", (1, 1, 9, 9), False)]).replace("xmin>1<", "xmin>one<"), "'one'"),
        (voc_xml("x", [("cat", (1, 1, 9, 9), False)]).replace("xmin>1<", "xmin>nan<"), "is nan"),
        (voc_xml("x", [("cat", (1, 1, 1e400, 9), False)]), "object 1: bndbox/xmax is inf"),
        (voc_xml("x", [("cat", (9, 1, 2, 9), False)]), "its box begins at 9, 1, but ends at 2, 9"),
        (voc_xml("x", []).replace("width>50<", "width>0<"), "has the size 0 x 40"),
        (voc_xml("x", []).replace("width>50<", "width>-5<"), "has the size -5 x 40"),
        (voc_xml("x", []).replace("width>50<", "width>inf<"), "size/width is inf"),
        (
            voc_xml("x", [("cat", (1, 1, 9, 9), False)]).replace("difficult>0", "difficult>maybe"),
            "difficult is 'maybe', not 0 or 1",
        ),
        ("<?xml version='1.0' encoding='martian'?><annotation/>", "unknown encoding"),
    ],
)
def test_a_wrong_annotation_is_refused_by_name(
    make: Make, tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "root/VOCdevkit/VOC2007/Annotations/test000002.xml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        make().load()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ImageSets/Main/test.txt", "test.txt: cannot be read; unpack the archives of http"),
        ("Annotations/test000001.xml", "test000001.xml: cannot be read; unpack"),
        ("JPEGImages/test000001.jpg", "test000001.jpg: is missing, but test.txt lists it; unpack"),
    ],
)
def test_missing_files_are_refused_by_name(
    make: Make, tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "root/VOCdevkit/VOC2007" / name).unlink()
    with pytest.raises(ConfigError, match=problem):
        make().load()


def test_without_files_and_downloads_the_message_names_the_place(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    message = r"data.root=.*: no VOCdevkit/VOC2007/ImageSets/Main/trainval.txt \(and 2 more\) there"
    message += r", .*"
    message += r"allow data.download=true, fetch http.*VOC/ by hand, so that .*trainval.txt exists"
    with pytest.raises(ConfigError, match=message):
        make(root=str(tmp_path / "empty"), download=False).prepare()


def test_unknown_years_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"data.years=2011: is unknown; choose 07, 07\+12, 12"):
        make(years="2011")


def packed(root: Path, lists: tuple[str, ...]) -> bytes:
    """Return an archive with the pictures of some lists."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.name.startswith(lists):
                archive.add(path, path.relative_to(root))
    return buffer.getvalue()


@extracts_an_archive
def test_missing_files_are_downloaded_beside_existing_ones(
    make: Make,
    tmp_path: Path,
    serve: Callable[[dict[str, bytes]], str],
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    """The archives of 2007 share folders, and the root already has the training pictures."""
    full = tmp_path / "root"
    entry: dict[str, Any] = torchvision_voc.DATASET_YEAR_DICT["2007-test"]
    url = serve({entry["filename"]: packed(full, ("test",))})
    monkeypatch.setitem(
        torchvision_voc.DATASET_YEAR_DICT, "2007-test", entry | {"url": url, "md5": None}
    )
    wanted = {name: content for name, content in contents(full).items() if "VOC2007" in name}
    for name in wanted:
        if os.path.basename(name).startswith("test"):
            (full / name).unlink()
    dataset = make(years="07")
    dataset.prepare()
    assert len(dataset.load()["test"]) == 4
    found = {name: content for name, content in contents(full).items() if "VOC2007" in name}
    assert found == wanted
    assert [path.name for path in full.iterdir()] == ["VOCdevkit"]


def test_every_choice_of_years_has_both_parts() -> None:
    assert all(set(parts) == {"train", "test"} for parts in YEARS.values())
    assert len(set(CLASSES)) == 20
    assert sorted(CLASSES) == list(CLASSES)


def test_a_data_set_is_checked_before_its_files_exist(make: Make, tmp_path: Path) -> None:
    """The check once read the property `task` only to see whether it exists.

    But `task` needs the files.
    """
    (tmp_path / "empty").mkdir()
    require("data._target_", "", make(root=str(tmp_path / "empty")), DATA_SET, "")


def test_a_picture_of_another_size_is_refused(make: Make, tmp_path: Path) -> None:
    devkit = tmp_path / "root/VOCdevkit/VOC2007"
    path = devkit / "Annotations/test000001.xml"
    sizes = "<width>40</width><height>50</height>"
    path.write_text(path.read_text().replace("<width>50</width><height>40</height>", sizes))
    with pytest.raises(
        ConfigError, match=r"test000001.jpg: measures 50x40 .* annotation says 40x5"
    ):
        make(years="07").prepare()


def test_a_picture_that_occurs_twice_is_refused(make: Make, tmp_path: Path) -> None:
    lists = tmp_path / "root/VOCdevkit/VOC2007/ImageSets/Main"
    for name, more in (("test", "trainval000001\n"), ("trainval", "trainval000002\n")):
        before = (lists / f"{name}.txt").read_text()
        (lists / f"{name}.txt").write_text(before + more)
        with pytest.raises(
            ConfigError, match=r"trainval00000\d.jpg: occurs twice, in training and test"
        ):
            make(years="07").load()
        (lists / f"{name}.txt").write_text(before)
