"""A user's own pictures: where they are searched, and the images made from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppll_cli.data import identity
from ppll_cli.data.imagefolder import ImageFolder
from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import IMAGE
from tests.data.class_pictures import both, broken, cut_off, listed, plain, write_classes
from tests.data.picture_files import picture

Options = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")


@pytest.fixture
def make(options: Options, cache: Path, tmp_path: Path) -> Callable[..., ImageFolder]:
    """Return a function that makes the data set in `root`, with images of 8 pixels."""
    (tmp_path / "root").mkdir()

    def imagefolder(**changes: object) -> ImageFolder:
        own = {"root": str(tmp_path / "root"), "size": 8, "loaders": 0}
        return ImageFolder(**options(**own | changes))

    return imagefolder


@pytest.fixture
def root(make: object, tmp_path: Path) -> Path:
    """Return the folder for the pictures."""
    return tmp_path / "root"


def colours(dataset: ImageFolder, split: str) -> list[int]:
    """Return the colours of plain pictures, in order."""
    images = dataset.load()[split].images  # type: ignore[union-attr]
    assert bool((images == images[:, :, :1, :1]).all())
    return [int(value) for value in images[:, 0, 0, 0]]


def test_a_users_picture_is_prepared_as_in_evaluation(
    make: Callable[..., ImageFolder], root: Path
) -> None:
    for part in ("train", "test"):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            picture(3, 50, 31).save(root / part / name / "0.png")
    dataset, cpu = make(), torch.device("cpu")
    splits = dataset.load()
    evaluated = dataset.batches(splits, 2, 0, cpu).evaluation("test", 0, 1)[IMAGE]
    with Image.open(root / "test" / "a" / "0.png") as given:
        found = dataset.inputs(given, dataset.image_spec(splits), cpu)[IMAGE]
    assert torch.equal(found, evaluated)


def test_folders_train_and_test_are_the_parts(make: Callable[..., ImageFolder], root: Path) -> None:
    write_classes(root / "train", {"cat": [10, 20], "ant": [30], "bee": [40, 50]})
    write_classes(root / "test", {"cat": [60], "ant": [70], "bee": []})
    dataset = make()
    dataset.prepare()
    splits = dataset.load()
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.task.classes == 3
    assert list(splits) == ["train", "test"]
    assert colours(dataset, "train") == [30, 40, 50, 10, 20]
    assert splits["train"].labels.tolist() == [0, 1, 1, 2, 2]
    assert (colours(dataset, "test"), splits["test"].labels.tolist()) == ([70, 60], [0, 2])
    assert dataset.image_spec(splits).height == dataset.image_spec(splits).width == 8


def test_folder_val_is_the_test_set_if_there_is_no_test(
    make: Callable[..., ImageFolder], root: Path
) -> None:
    write_classes(root / "train", {"a": [10, 20, 30, 40], "b": [50, 60, 70, 80]})
    write_classes(root / "val", {"a": [90], "b": [100]})
    assert colours(make(), "test") == [90, 100]
    assert list(make().load()) == ["train", "test"]
    held_out = make(val_fraction=0.25)
    assert colours(held_out, "test") == [90, 100]
    assert len(held_out.load()["val"]) == 2
    write_classes(root / "test", {"a": [110], "b": [120]})
    assert (colours(make(), "val"), colours(make(), "test")) == ([90, 100], [110, 120])
    with pytest.raises(ConfigError, match=r"part val.*data\.val_fraction=0"):
        make(val_fraction=0.25).load()


@pytest.mark.parametrize("inner", ["", "train"])
def test_val_fraction_makes_the_test_set_if_there_is_no_other(
    make: Callable[..., ImageFolder], root: Path, inner: str
) -> None:
    write_classes(root / inner, {"a": range(0, 50, 10), "b": range(50, 100, 10)})
    with pytest.raises(ConfigError, match=r"neither test nor val.*data\.val_fraction=0\.2"):
        make().prepare()
    with pytest.raises(ConfigError, match=r"leaves samples in both parts$"):
        make(val_fraction=1e-5).prepare()
    dataset = make(val_fraction=0.3)
    assert list(dataset.load()) == ["train", "test"]
    train, test = colours(dataset, "train"), colours(dataset, "test")
    assert (len(train), len(test)) == (7, 3)
    assert sorted(train + test) == list(range(0, 100, 10))
    assert test == colours(make(val_fraction=0.3), "test")
    assert test[:2] == colours(make(val_fraction=0.3, eval_limit=2), "test")


def test_eval_limit_keeps_pictures_of_all_classes(
    make: Callable[..., ImageFolder], root: Path
) -> None:
    """The pictures of a folder are in the order of their classes."""
    for part in ("train", "val", "test"):
        write_classes(
            root / part, {name: range(10 * n, 10 * n + 10) for n, name in enumerate("ab")}
        )
    for split in ("val", "test"):
        labels = make(eval_limit=8).load()[split].labels.tolist()
        assert len(labels) == 8
        assert 2 <= sum(labels) <= 6
        some, more = colours(make(eval_limit=8), split), colours(make(eval_limit=12), split)
        assert set(some) < set(more)
        assert colours(make(eval_limit=100), split) == colours(make(), split)
    assert len(make(eval_limit=8).load()["train"].labels) == 20


def test_pictures_in_subfolders_are_found_and_other_files_ignored(
    make: Callable[..., ImageFolder], root: Path
) -> None:
    write_classes(root, {"a/old": [10], "b": [20], "a/new": [30], ".hidden": [40]})
    (root / "a" / "notes.txt").write_text("no picture")
    (root / "b" / ".thumb.png").write_bytes(b"")
    plain(50).save(root / "b" / "LARGE.JPG")
    dataset = make(val_fraction=0.5)
    assert dataset.class_names == ("a", "b")
    assert sum(map(len, dataset.load().values())) == 4


CSV = [
    ("one.png,x\ntwo.png,y\n", {"x": [10], "y": [20]}),
    ("label,n,path\nx,1,one.png\ny,2,two.png\nx,3,one.png", {"x": [10, 10], "y": [20]}),
    ("one.png; x\n\n two.png;y", {"x": [10], "y": [20]}),
    ("Image\tClass\r\none.png\tx\r\ntwo.png\ty\r\n", {"x": [10], "y": [20]}),
    ("\ufeffpath,label\none.png,x\ntwo.png,y", {"x": [10], "y": [20]}),
    ('"one.png","x, y"\ntwo.png,z', {"x, y": [10], "z": [20]}),
    ("one.png,10\ntwo.png,9\n", {"9": [20], "10": [10]}),
    ("class.png,x\none.png,path\n", {"path": [10], "x": [5]}),
    ('one.png,"x\n1"\ntwo.png,x\u20282\n', {"x\n1": [10], "x\u20282": [20]}),
    ("one.png,x\rtwo.png,y\r", {"x": [10], "y": [20]}),
]


@pytest.mark.parametrize(("text", "classes"), CSV)
def test_csv_files_list_pictures_and_classes(
    make: Callable[..., ImageFolder], root: Path, text: str, classes: dict[str, list[int]]
) -> None:
    for name, colour in (("one", 10), ("two", 20), ("class", 5)):
        plain(colour).save(root / f"{name}.png")
    (root / "test").mkdir()
    plain(30).save(root / "test" / "three.png")
    (root / "train.csv").write_bytes(text.encode())
    last = [*classes][-1]
    (root / "test.csv").write_text(f'three.png,"{last}"')  # relative to the part's folder
    dataset = make()
    assert dataset.class_names == (*classes,)
    assert colours(dataset, "train") == [each for colours in classes.values() for each in colours]
    assert colours(dataset, "test") == [30]
    assert dataset.load()["test"].labels.tolist() == [1]


def test_a_single_csv_file_may_have_any_name(make: Callable[..., ImageFolder], root: Path) -> None:
    write_classes(root / "pictures", {"all": range(10, 50, 10)})
    listed = [f"pictures/all/{n:03}.png,{'odd' if n % 2 else 'even'}" for n in range(4)]
    (root / "labels.csv").write_text("\n".join(listed))
    assert sorted(colours(make(val_fraction=0.5), "train")) != []
    assert make(val_fraction=0.5).class_names == ("even", "odd")


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda root: None,
        r"data\.root=[^:]*/root: has neither folders of classes nor a CSV file; put train/",
    ),
    (lambda root: write_classes(root / "test", {"a": [1]}), "[^:]*/root: has test, but no train"),
    (lambda root: write_classes(root, {"train": [1, 2]}), "train: has no folders of cl"),
    (lambda root: write_classes(root / "train", {"a": [1]}), "train: has only one class, a"),
    (
        lambda root: write_classes(root / "train", {"a": [1], "b": []}),
        "train/b: this class has no pictures; put some there, or remove the folder",
    ),
    (
        lambda root: both(root, "test/c"),
        "test: has the class c, which the training pictures do not have; add c",
    ),
    (
        lambda root: both(root, "train/c"),
        "test: lacks the class c, which the training pictures have; make the folder",
    ),
    (lambda root: broken(root, "train/a/x.png", b"text"), "train/a/x.png: cannot be read"),
    (lambda root: broken(root, "test/b/x.jpg", b""), "test/b/x.jpg: cannot be read"),
    (cut_off, "test/a/cut.jpg: cannot be read as a picture .*; remove or repair it"),
    (
        lambda root: listed(root, "train/a/000.png,a\ntrain/a/7.png,b"),
        "train.csv, line 2: there is no file .*/train/a/7.png; correct or remove the line",
    ),
    (lambda root: listed(root, "train/a,a\n"), "train.csv, line 1: there is"),
    (lambda root: listed(root, "path,label\n\nx.png\n"), "line 3: lacks a path or"),
    (lambda root: listed(root, "x.png,"), "line 1: lacks a path or"),
    (lambda root: listed(root, "path,label\n"), "train.csv: lists no pictures"),
    (lambda root: listed(root, 'a,"b"c\n'), "train.csv, line 1: "),
    (
        lambda root: broken(root, "train.csv", b"\xff\xfe,a"),
        "train.csv: is not text in UTF-8; save",
    ),
    (
        lambda root: listed(root, "train/a/000.png,c", "test"),
        "test.csv: has the class c, which the training pictures do not have",
    ),
    (
        lambda root: listed(root, "train/a/000.png,a", "test"),
        "train/a/000.png: is in train and in test; keep it in only one",
    ),
    (
        lambda root: listed(root, "train/a/000.png,a\ntrain/a/000.png,b\n"),
        "train/a/000.png: is in class a and in class b; keep it in only one",
    ),
    (
        lambda root: [(root / f"{name}.csv").write_text("") for name in "ab"],
        "has several CSV files, a.csv and b.csv among them; name them train.csv and test.csv",
    ),
]


@pytest.mark.parametrize(("write", "line"), WRONG)
@pytest.mark.parametrize("loaders", [0, 1])
def test_unusable_files_are_refused_by_name(
    make: Callable[..., ImageFolder],
    root: Path,
    write: Callable[[Path], object],
    line: str,
    loaders: int,
) -> None:
    write(root)
    with pytest.raises(ConfigError, match=line) as caught:
        make(loaders=loaders).prepare()
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_a_root_must_be_given(options: Options) -> None:
    with pytest.raises(ConfigError, match=r"data\.root=null: .*data\.root=FOLDER"):
        ImageFolder(**options(size=8))


@pytest.mark.parametrize(("key", "value"), [("size", 0), ("loaders", -1), ("pad", 8)])
def test_impossible_options_are_refused(
    make: Callable[..., ImageFolder], key: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**{key: value})
    assert (caught.value.key, caught.value.value) == (f"data.{key}", value)


def test_unusual_pictures_are_used(make: Callable[..., ImageFolder], root: Path) -> None:
    """The pictures are grey, CMYK, 16-bit, tiny or long, or have alpha or a palette.

    All become squares.
    """
    both(root)
    folder = root / "train" / "b"
    for name in ("L.jpg", "LA.png", "RGBA.png", "CMYK.jpg", "P.gif"):
        plain(128).convert(name.partition(".")[0]).save(folder / name)
    Image.fromarray(np.full((9, 5), 128 << 8, dtype=np.uint16)).save(folder / "deep.png")
    plain(128, 1).resize((1, 1)).save(folder / "pixel.png")
    plain(128).resize((900, 2)).save(folder / "strip.bmp")
    images = make().load()["train"].images[2:].int()  # type: ignore[union-attr]
    assert len(images) == 8
    assert int((images - 128).abs().max()) < 10  # GIF's palette changes the grey a little


def test_a_rotated_picture_becomes_upright_and_is_cropped_at_its_middle(
    make: Callable[..., ImageFolder], root: Path
) -> None:
    """The picture is wide: red on the left, green in the middle, blue on the right.

    It is stored turned.
    """
    both(root)
    wide = np.zeros((40, 120, 3), dtype=np.uint8)
    for third in range(3):
        wide[:, 40 * third : 40 * third + 40, third] = 255
    wide[:20, 40:80, 0] = 255  # make the upper half of the middle yellow
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(wide).transpose(Image.Transpose.ROTATE_90)
    stored.save(root / "train" / "b" / "turned.png", exif=exif)
    image = make().load()["train"].images[-1]  # type: ignore[union-attr]
    assert image[:, 1, 4].tolist() == [255, 255, 0]
    assert image[:, 6, 4].tolist() == [0, 255, 0]
    assert int(image[2, :, 1:-1].max()) == 0


def test_images_are_decoded_once_and_the_root_is_not_changed(
    make: Callable[..., ImageFolder],
    root: Path,
    cache: Path,
    contents: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both(root)
    before = contents(root)
    make().prepare()
    assert contents(root) == before
    assert len(list(cache.glob("images/*/images.npy"))) == 2
    with monkeypatch.context() as patch:
        # No picture is decoded again.
        patch.setattr("ppll_cli.data.labelled.loaders.image_of", None)
        assert colours(make(), "train") == [10, 20]
    plain(99).save(root / "train" / "a" / "000.png")
    assert colours(make(), "train") == [99, 20]
    next(cache.glob("images/*/images.npy")).write_bytes(b"damaged")
    assert colours(make(), "test") == [30, 40]
    assert colours(make(), "train") == [99, 20]


def test_the_identity_depends_on_names_and_sizes_and_not_on_the_folder(
    make: Callable[..., ImageFolder], root: Path, tmp_path: Path
) -> None:
    both(root)
    before = make().identity(None)
    root.rename(tmp_path / "moved")
    moved = make(root=str(tmp_path / "moved"))
    assert moved.identity(None) == before
    plain(10, 99).save(tmp_path / "moved" / "train" / "a" / "000.png")
    other = make(root=str(tmp_path / "moved")).identity(None)
    assert identity.difference(other, before) == "a in train has changed"


@pytest.mark.parametrize("bytes_of", [4 << 30, 5000])
def test_loaders_are_used_if_images_do_not_fit_in_memory(
    make: Callable[..., ImageFolder], root: Path, monkeypatch: pytest.MonkeyPatch, bytes_of: int
) -> None:
    both(root)  # 4 images of 192 bytes each
    monkeypatch.setattr("ppll_cli.data.labelled.dataset.memory_bytes", lambda: bytes_of)
    assert make(loaders=None).resident
    write_classes(root / "train", {"a": range(10, 60, 10)})
    assert make(loaders=None).resident == (bytes_of > 5000)
