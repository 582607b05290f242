"""ImageNet and Tiny ImageNet, in the layouts that users have."""

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppll_cli.data import tiny_imagenet
from ppll_cli.data.imagenet import ImageNet
from ppll_cli.data.labelled.loader import Wanted, image_of
from ppll_cli.data.tiny_imagenet import TinyImageNet
from ppll_cli.errors import ConfigError
from tests.data.class_pictures import plain, write_classes
from tests.data.picture_files import picture

Options = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")


def write_tiny(base: Path) -> None:
    """Write three classes, not in alphabetical order. Each has one picture in `val`."""
    colours = {"n03": [30, 31], "n01": [10], "n02": [20, 21]}
    write_classes(base / "train", {f"{name}/images": own for name, own in colours.items()})
    (base / "train" / "n03" / "n03_boxes.txt").write_text("000.png\t0\t0\t9\t9\n")
    write_classes(base / "val", {"images": [32, 12, 22]})
    lines = [f"{n:03}.png\t{name}\t0\t0\t62\t61\n" for n, name in enumerate(("n03", "n01", "n02"))]
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    write_classes(base / "test", {"images": [99]})
    (base / "wnids.txt").write_text("n03\nn01\nn02\n")


def colours(splits: Any, split: str) -> list[int]:
    return [int(value) for value in splits[split].images[:, 0, 0, 0]]


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_in_its_published_layout(
    options: Options, cache: Path, tmp_path: Path, inner: str
) -> None:
    write_tiny(tmp_path / "root" / inner)
    dataset = TinyImageNet(**options(root=str(tmp_path / "root"), size=8))
    dataset.prepare()
    splits = dataset.load()
    assert dataset.class_names == ("n01", "n02", "n03")
    assert (colours(splits, "train"), colours(splits, "test")) == (
        [10, 20, 21, 30, 31],
        [12, 22, 32],
    )
    assert splits["test"].labels.tolist() == [0, 1, 2]


def test_tiny_imagenets_val_may_be_sorted_into_classes(
    options: Options, cache: Path, tmp_path: Path
) -> None:
    write_tiny(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").unlink()
    (tmp_path / "val" / "images").rename(tmp_path / "val" / "n01")
    write_classes(tmp_path / "val", {"n02/images": [5], "n03": [6]})
    splits = TinyImageNet(**options(root=str(tmp_path), size=8)).load()
    assert colours(splits, "test") == [32, 12, 22, 5, 6]


def test_tiny_imagenet_with_a_missing_val_picture_is_refused(
    options: Options, cache: Path, tmp_path: Path
) -> None:
    write_tiny(tmp_path)
    (tmp_path / "val" / "images" / "001.png").unlink()
    dataset = TinyImageNet(**options(root=str(tmp_path), size=8))
    with pytest.raises(ConfigError, match=r"val_annotations\.txt, line 2: there is no file .*001"):
        dataset.prepare()


def test_tiny_imagenet_is_downloaded_once_and_unpacked(
    options: Options,
    cache: Path,
    tmp_path: Path,
    serve: Callable[[dict[str, bytes]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_tiny(tmp_path / "source" / "tiny-imagenet-200")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for path in (tmp_path / "source").rglob("*"):
            packed.write(path, path.relative_to(tmp_path / "source"))
    content = archive.getvalue()
    monkeypatch.setattr(tiny_imagenet, "URL", serve({"tiny-imagenet-200.zip": content}))
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(content).hexdigest())
    dataset = TinyImageNet(**options(size=8))
    dataset.prepare()
    assert colours(dataset.load(), "test") == [12, 22, 32]
    assert {path.name for path in cache.iterdir()} == {"tiny-imagenet-200", "images"}
    monkeypatch.setattr(tiny_imagenet, "URL", "http://127.0.0.1:9/gone.zip")
    TinyImageNet(**options(size=8)).prepare()


OWN = {"size": 16, "crop_scale": (0.2, 0.6), "middle_part": 0.5, "loaders": 1, "flip": True}


def write_imagenet(root: Path, *, kaggle: bool = False) -> None:
    """Write four training and two test pictures of two classes."""
    base = root / "ILSVRC" / "Data" / "CLS-LOC" if kaggle else root
    for number in range(6):
        name = f"n0{number % 2}"
        inner = f"train/{name}" if number < 4 else "val" if kaggle else f"val/{name}"
        (base / inner).mkdir(parents=True, exist_ok=True)
        picture(number, 60 + number, 40).save(base / inner / f"p{number}.JPEG")
    if kaggle:
        lines = "ImageId,PredictionString\np5,n01 1 2 3 4 n01 5 6 7 8 \np4,n00 1 2 3 4 \n"
        (root / "LOC_val_solution.csv").write_text(lines)


@pytest.mark.parametrize("kaggle", [False, True])
def test_imagenet_is_read_in_both_layouts(
    options: Options, cache: Path, tmp_path: Path, kaggle: bool
) -> None:
    write_imagenet(tmp_path, kaggle=kaggle)
    dataset = ImageNet(**options(**OWN, root=str(tmp_path)))
    dataset.prepare()
    splits: Any = dataset.load()
    assert dataset.class_names == ("n00", "n01")
    assert [Path(path).name for path in splits["test"].paths] == ["p4.JPEG", "p5.JPEG"]
    assert splits["test"].labels.tolist() == [0, 1]
    batches = dataset.batches(splits, 3, 0, CPU)
    found = batches.evaluation("test", 0, 2)["image"] * 0.25 + 0.5  # undo SHARED's normalisation
    wanted = [image_of(Wanted(path, 0.5), 16) for path in splits["test"].paths]
    assert torch.equal((found * 255).round().byte(), torch.from_numpy(np.stack(wanted)))
    assert not cache.exists()


def test_imagenets_random_crops_depend_only_on_seed_epoch_and_batch(
    options: Options, tmp_path: Path
) -> None:
    write_imagenet(tmp_path)

    def batch(seed: int, epoch: int, number: int, *before: tuple[int, int]) -> torch.Tensor:
        dataset = ImageNet(**options(**OWN | {"flip": False}, root=str(tmp_path)))
        batches = dataset.batches(dataset.load(), 4, seed, CPU)
        for other in before:
            batches.train(*other)
        made = batches.train(epoch, number)
        # The batch is the whole training set. Sort it by label, to compare images of the same
        # pictures.
        return made["image"][made["label"].argsort(stable=True)]

    first = batch(0, 1, 0)
    assert torch.equal(first, batch(0, 1, 0, (0, 0), (3, 0)))
    assert not torch.equal(first.sort(0).values, batch(0, 2, 0).sort(0).values)
    assert not torch.equal(first.sort(0).values, batch(1, 1, 0).sort(0).values)


def test_missing_files_of_imagenet_are_named(options: Options, tmp_path: Path) -> None:
    def line(**changes: object) -> str:
        with pytest.raises(ConfigError) as caught:
            ImageNet(**options(**OWN | changes, root=str(tmp_path))).prepare()
        return str(caught.value)

    assert "has no folder train; ImageNet cannot be downloaded" in line()
    write_classes(tmp_path / "train", {"n00": [1], "n01": [2]})
    assert "val: cannot be read (no such file or directory)" in line()
    (tmp_path / "val").mkdir()
    plain(3).save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    assert "sort its pictures into val/CLASS, as valprep.sh does" in line()
    assert "data.crop_scale=(0.5, 0.1): is not a range" in line(crop_scale=(0.5, 0.1))
    assert "data.middle_part=2" in line(middle_part=2)
    assert "data.loaders=0: must be greater than or equal to 1, or null" in line(loaders=0)
