"""COCO: the content of annotation files, and the folders where they are searched."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.data import coco
from ppll_cli.data.coco import Coco
from ppll_cli.data.scenes import dataset as scenes_dataset
from ppll_cli.errors import ConfigError
from tests.data.scene_files import write_coco
from tests.data.shipped import shipped

NAN = float("nan")
Make = Callable[..., Coco]
Change = Callable[[Any], object]


@pytest.fixture
def make(tmp_path: Path, cache: Path) -> Make:
    """Return a function that makes the data set with three pictures per part, with changes."""
    root = write_coco(tmp_path / "root")
    return lambda **changes: Coco(**shipped("coco", **({"root": str(root)} | changes)))


def test_pictures_and_classes_are_sorted_by_their_ids(make: Make) -> None:
    """Crowds are ignored, boxes without area are dropped, and pictures without objects stay."""
    dataset = make()
    assert dataset.class_names == ("person", "cat", "x")
    test = dataset.load()["test"]
    scenes = [test[number] for number in range(3)]
    files = [scene.pixels.name for scene in scenes if isinstance(scene.pixels, Path)]
    assert files == ["000000000007.jpg", "000000000009.jpg", "000000000030.jpg"]
    assert [scene.boxes.tolist() for scene in scenes] == [
        [[40, 30, 50, 40]],
        [],
        [[4.5, 3, 24.5, 13], [0, 0, 50, 30]],
    ]
    assert [scene.labels.tolist() for scene in scenes] == [[2], [], [1, 0]]
    assert [scene.ignored.tolist() for scene in scenes] == [[False], [], [False, True]]
    task = dataset.task
    assert (task.classes, task.boxes, task.crowds) == (dataset.class_names, 2, True)
    assert (task.height, task.width, task.anchor) == (1344, 1344, 32)


def test_annotations_are_read_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make().prepare()
    monkeypatch.setattr(coco, "parse", lambda _: pytest.fail("read again"))
    dataset = make()
    dataset.prepare()
    assert dataset.task.boxes == 2


def test_missing_files_are_named_with_an_address(make: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = r"data.root=.*empty.*instances_train2017.json: is missing; unpack .*"
    message += r"https://cocodataset.org/#download so that .*instances_train2017.json exists"
    with pytest.raises(ConfigError, match=message):
        make(root=str(tmp_path / "empty")).prepare()
    picture = tmp_path / "root" / "val2017" / "000000000009.jpg"
    picture.unlink()
    with pytest.raises(ConfigError, match=f"{picture}: is missing"):
        make().prepare()


def changed(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def of(key: str, position: int = 0, **values: object) -> Change:
    """Return a function that changes an entry of a list."""
    return lambda content: content[key][position].update(values)


WRONG: list[tuple[Change, str]] = [
    (lambda content: content.pop("images"), "its images are null, not a list"),
    (lambda content: content.update(annotations=["x"]), r'annotations\[0\] is "x", not an object'),
    (lambda content: content.update(categories=[]), "its list of categories is empty"),
    (of("annotations", category_id=2), r"annotations\[0\] \(id 0\) has category_id=2: no category"),
    (of("annotations", category_id=[1]), r"has category_id=\[1\]: it must be a whole number"),
    (of("annotations", image_id=-1), "has image_id=-1: no image has this id"),
    (of("annotations", image_id="7"), 'has image_id="7": it must be a whole number'),
    (of("annotations", bbox=[1, 2]), r"has bbox=\[1, 2\]: it must be left, top, width and height"),
    (of("annotations", bbox=[]), r"has bbox=\[\]: it must be left"),
    (of("annotations", bbox=[1, 2, NAN, 3]), r"has bbox=\[1, 2, NaN, 3\]: it must be left"),
    (of("annotations", bbox=[1, 2, 10**400, 3]), r"has bbox=\[1, 2, 1000.*\.\.\.: it must be left"),
    (of("annotations", bbox=[1, 2, True, 3]), "has bbox=.*: it must be left"),
    (of("annotations", bbox=[30, 2, -9, 3]), "width and height must not be negative"),
    (of("annotations", iscrowd="0"), 'has iscrowd="0": it must be 0 or 1'),
    (of("images", id=9), r"images\[0\] \(id 9\) and images\[2\] \(id 9\) have the same id"),
    (
        of("categories", id=1),
        r"categories\[0\] \(id 1\) and categories\[1\] \(id 1\) have the same",
    ),
    (of("images", id="30"), 'has id="30": it must be a whole number'),
    (of("images", id=True), "has id=true: it must be a whole number"),
    (of("images", file_name=None), "has file_name=null: it must be printable"),
    (of("images", file_name="a\nb\x1b[31m"), "it must be printable text"),
    (of("categories", name=""), 'has name="": it must be printable'),
    (of("images", width=0), 'has width=0: width and height of "0+30.jpg" must be whole numbers'),
    (of("images", height=None), 'has height=null: width and height of "0+30.jpg" must be whole'),
    (of("images", width=float("inf")), "has width=Infinity: width and height"),
    (of("images", width=50.5), "has width=50.5: width and height"),
]


@pytest.mark.parametrize(("change", "problem"), WRONG)
def test_wrong_annotations_are_refused_by_name(
    make: Make, tmp_path: Path, change: Change, problem: str
) -> None:
    """Messages name file, entry and value.

    Wrong entries once lost boxes, or moved them to other pictures.
    """
    path = tmp_path / "root" / "annotations" / "instances_train2017.json"
    changed(path, change)
    with pytest.raises(ConfigError, match=f"{path}: is not an annotation file .*{problem}") as told:
        make().load()
    assert str(told.value).isprintable()


@pytest.mark.parametrize("content", ["no JSON", "[]", "null", "[" * 100_000, '{"images": 1e'])
def test_a_file_without_annotations_is_refused(make: Make, tmp_path: Path, content: str) -> None:
    path = tmp_path / "root" / "annotations" / "instances_train2017.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"{path}: is not an annotation file"):
        make().load()


def test_annotation_files_of_other_sources_are_read(make: Make, tmp_path: Path) -> None:
    """These files have no flags for crowds, and their pictures may be in subfolders."""
    path = tmp_path / "root" / "annotations" / "instances_val2017.json"

    def other(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation.pop("iscrowd")
        for picture in content["images"]:
            picture["file_name"] = f"inner/{picture['file_name']}"

    changed(path, other)
    pictures = tmp_path / "root" / "val2017"
    (pictures / "inner").mkdir()
    for picture in pictures.glob("*.jpg"):
        picture.rename(pictures / "inner" / picture.name)
    test = make().load()["test"]
    assert not any(test[number].ignored.any() for number in range(len(test)))


def test_parts_with_different_classes_are_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "root" / "annotations" / "instances_val2017.json"
    changed(path, lambda content: content["categories"][0].update(name="lion"))
    with pytest.raises(
        ConfigError, match=r"val2017.json: its classes differ from those of instances_"
    ):
        make().prepare()


def test_a_picture_of_another_size_is_refused(make: Make, tmp_path: Path) -> None:
    """The picture is refused before training.

    If the time limit of this check is over, it is refused when it is decoded.
    """
    path = tmp_path / "root" / "annotations" / "instances_val2017.json"
    changed(path, of("images", 1, width=40, height=50))
    picture = tmp_path / "root" / "val2017" / "000000000007.jpg"
    message = f"data={picture}: measures 50x40 pixels, but its annotation says 40x50"
    with pytest.raises(ConfigError, match=message):
        make().prepare()
    with pytest.raises(ConfigError, match=message):
        make().load()["test"][0]


def test_the_check_of_picture_sizes_has_a_time_limit(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(
        tmp_path / "root" / "annotations" / "instances_train2017.json",
        of("images", 1, width=40, height=50),
    )
    monkeypatch.setattr(scenes_dataset, "CHECK_S", -1.0)
    make().prepare()


def test_dropped_boxes_are_counted_in_the_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    make().prepare()
    make().prepare()  # this time the index comes from the cache
    said = (
        "1 of 4 boxes are left out, .* the first in 000000000007.jpg; 1 more boxes lose over half"
    )
    assert len(re.findall(said, caplog.text)) == 2


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([0.1, 0.2, 0.5, 0.5], "all boxes end within the first pixel: give pixels, not fractions"),
        ([60, 2, 9, 9], "4 of 4 boxes lie mostly outside of their pictures"),
        (
            [4, 2, 0, 9],
            "4 of 4 boxes lie mostly outside of their pictures, or are thinner than a pixel",
        ),
        ([30, 20, 60, 60], "4 of 4 boxes lie mostly outside"),
    ],
)
def test_boxes_in_another_format_are_refused(
    make: Make, tmp_path: Path, box: list[float], problem: str
) -> None:
    """The program once dropped all of these boxes one by one, and trained without objects."""
    path = tmp_path / "root" / "annotations" / "instances_train2017.json"

    def all_alike(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["bbox"] = box

    changed(path, all_alike)
    with pytest.raises(ConfigError, match=f"{path}: .*{problem}"):
        make().load()


def test_parts_without_objects_are_logged(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A picture that has only crowds counts as one without objects."""
    path = tmp_path / "root" / "annotations" / "instances_val2017.json"
    changed(path, lambda content: [each.update(iscrowd=1) for each in content["annotations"]])
    make().prepare()
    told = "the 3 pictures of test have no objects, or only ignored ones: ap will be null"
    assert told in caplog.text
    assert "of train" not in caplog.text


def test_a_picture_that_occurs_twice_is_refused(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    changed(
        root / "annotations" / "instances_train2017.json",
        of("images", 1, file_name="000000000030.jpg"),
    )
    with pytest.raises(ConfigError, match=r"000000000030.jpg: occurs twice, in training and test"):
        make().load()
    for name in ("train2017", "annotations/instances_train2017.json"):
        (root / name).rename(root / f"{name}-old")
    (root / "train2017").symlink_to(root / "val2017")
    content = (root / "annotations" / "instances_val2017.json").read_text()
    (root / "annotations" / "instances_train2017.json").write_text(content)
    with pytest.raises(
        ConfigError, match=r"val2017/.*jpg and as .*train2017/.*occurs twice, in training and"
    ):
        make().load()


def test_a_link_to_a_picture_of_the_other_part_is_refused(make: Make, tmp_path: Path) -> None:
    """Earlier, links to folders were followed, but not links to single pictures."""
    root = tmp_path / "root"
    trained, tested = (min((root / folder).iterdir()) for folder in ("train2017", "val2017"))
    tested.unlink()
    tested.symlink_to(trained)
    with pytest.raises(ConfigError, match=rf"and as .*{trained.name}: occurs twice, in training"):
        make().load()


def test_two_links_in_a_part_may_lead_to_one_file(make: Make, tmp_path: Path) -> None:
    """Some programs store equal files only once, and put links in their places."""
    folder = tmp_path / "root" / "train2017"
    stored = tmp_path / "stored"
    first, second, *_ = sorted(folder.iterdir())
    first.rename(stored)
    second.unlink()
    for link in (first, second):
        link.symlink_to(stored)
    assert "train" in make().load()
