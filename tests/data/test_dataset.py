import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ppll_cli.data.classified import Classified
from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.files import Part, cache_root
from ppll_cli.data.pictures.dataset import PictureDataset
from ppll_cli.data.scenes.dataset import DetectionDataset
from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import ImageSpec
from ppll_cli.tasks.classification import Classification

Options = Callable[..., dict[str, Any]]
CONF = Path(__file__).parents[2] / "conf" / "data"
DATA_SETS = {"cifar10", "digits", "fashion_mnist", "stl10", "svhn", "synthetic", "photos", "div2k"}
DATA_SETS |= {
    "cifar100",
    "imagefolder",
    "imagenet",
    "tiny_imagenet",
    "voc",
    "coco",
    "fashion_scenes",
}


class Numbered(ImageDataset):
    """Has 40 training and 10 test images of 4x4 pixels.

    Each image is filled with its own number.
    """

    class_count = 5
    channel_count = 3

    def read(self, part: Part) -> Arrays:
        numbers = np.arange(40) if part == "train" else np.arange(100, 110)
        images = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 3, 4, 4))
        return Arrays(images.astype(np.uint8), numbers % 5, f"{part}.bin")


def numbers(images: torch.Tensor) -> list[int]:
    """Return the numbers of some images of `Numbered`."""
    values: list[int] = images[:, 0, 0, 0].tolist()
    return values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("val_fraction", 1.0),
        ("val_fraction", -0.1),
        ("val_fraction", float("nan")),
        ("eval_limit", 0),
        ("eval_limit", -1),
        ("mean", []),
        ("mean", [0.5, 0.5]),
        ("mean", [float("nan")]),
        ("std", [0.2, 0.2, 0.2, 0.2]),
        ("std", [0.2, 0.0, 0.2]),
        ("std", [float("inf")]),
        ("pad", -1),
        ("pad_mode", "wrap"),
        ("root", "/nowhere/at/all"),
        ("root", ""),
        ("root", __file__),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: Options, key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Numbered(**options(**{key: value}))
    assert caught.value.key == f"data.{key}"
    assert caught.value.value == value or value != value


@pytest.mark.parametrize(
    ("key", "value"),
    [("val_fraction", 0), ("eval_limit", 1), ("mean", [0.1, 0.2, 0.3]), ("pad_mode", "reflect")],
)
def test_a_right_option_is_accepted(options: Options, key: str, value: object) -> None:
    assert getattr(Numbered(**options(**{key: value})), key) == value


def test_data_are_kept_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_root() == Path("/var/cache/me/ppll-run/data")


def test_a_missing_home_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "nonsense")
    with pytest.raises(ConfigError, match="no home folder"):
        cache_root()


def test_a_root_may_begin_with_a_tilde(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Numbered(**options(root="~")).folder == tmp_path


def test_loading_gives_splits_task_and_image_spec(options: Options) -> None:
    dataset = Numbered(**options())
    dataset.prepare()
    splits = dataset.load()
    assert list(splits) == ["train", "test"]
    assert splits["train"].images.shape == (40, 3, 4, 4)
    assert splits["train"].images.dtype == torch.uint8
    assert splits["train"].labels.dtype == torch.int64
    assert splits["train"].labels.tolist() == [n % 5 for n in range(40)]
    assert dataset.task == Classification(5)
    assert dataset.image_spec(splits) == ImageSpec(3, 4, 4, mean=(0.5,), std=(0.25,))


def test_held_out_samples_are_fixed_and_disjoint_from_training(options: Options) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = Numbered(**options(val_fraction=0.25)).load()
    torch.manual_seed(2)
    np.random.seed(2)
    again = Numbered(**options(val_fraction=0.25)).load()
    train, val = numbers(first["train"].images), numbers(first["val"].images)
    assert list(first) == ["train", "val", "test"]
    assert (train, val) == (numbers(again["train"].images), numbers(again["val"].images))
    assert len(val) == 10
    assert sorted(train + val) == list(range(40))
    assert first["val"].labels.tolist() == [n % 5 for n in val]
    assert first["train"].labels.tolist() == [n % 5 for n in train]


def test_held_out_samples_are_those_of_earlier_versions(options: Options) -> None:
    """With other held-out samples, results could not be compared with those of older versions."""
    val = Numbered(**options(val_fraction=0.25)).load()["val"]
    assert numbers(val.images) == [10, 34, 9, 7, 8, 2, 30, 35, 32, 18]


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_val_fraction_that_leaves_a_part_empty_is_refused(
    options: Options, fraction: float
) -> None:
    with pytest.raises(ConfigError, match="of 40 training samples") as caught:
        Numbered(**options(val_fraction=fraction)).load()
    assert caught.value.key == "data.val_fraction"


def test_eval_limit_shortens_val_and_test_but_not_train(options: Options) -> None:
    every = Numbered(**options(val_fraction=0.25)).load()
    few = Numbered(**options(val_fraction=0.25, eval_limit=3)).load()
    assert numbers(few["test"].images) == [100, 101, 102]
    assert numbers(few["val"].images) == numbers(every["val"].images)[:3]
    assert numbers(few["train"].images) == numbers(every["train"].images)
    many = Numbered(**options(eval_limit=1000)).load()
    assert len(many["test"].labels) == 10


def test_a_pad_as_large_as_the_image_is_refused(options: Options) -> None:
    Numbered(**options(pad=3)).load()
    with pytest.raises(ConfigError, match="must be less than 4, "):
        Numbered(**options(pad=4)).load()


IMAGES, LABELS = np.zeros((6, 3, 4, 4), np.uint8), np.arange(6) % 5


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (IMAGES, LABELS[:5], "holds 6 images and 5 labels"),
        (IMAGES[:0], LABELS[:0], "holds no images"),
        (IMAGES, LABELS + 1, "holds labels 1 to 5, not 0 to 4"),
        (IMAGES, LABELS - 1, "holds labels -1 to 3"),
        (IMAGES, LABELS.astype(np.float32), "holds labels float32"),
        (IMAGES, LABELS[:, None], r"holds labels int64 \(6, 1\)"),
        (IMAGES.astype(np.int16), LABELS, "holds images int16"),
        (IMAGES[:, :1], LABELS, r"not uint8 \[N, 3, H, W\]"),
        (IMAGES[:, :, 0], LABELS, "holds images uint8"),
        (IMAGES[..., :3], LABELS, "the training images"),
        (IMAGES.tolist(), LABELS, "holds images as list, not as a NumPy array"),
        (IMAGES, torch.from_numpy(LABELS), "holds labels as Tensor, not as a NumPy array"),
    ],
)
def test_wrong_contents_are_refused_with_the_name_of_their_file(
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    images: Any,
    labels: Any,
    problem: str,
) -> None:
    parts = {"train": Arrays(IMAGES, LABELS, "good.bin"), "test": Arrays(images, labels, "bad.bin")}
    monkeypatch.setattr(Numbered, "read", lambda _, part: parts[part])
    with pytest.raises(ConfigError, match=problem) as caught:
        Numbered(**options()).load()
    assert caught.value.key == "data.root"
    assert str(caught.value).startswith("data.root=null: bad.bin: ")
    assert str(caught.value).endswith("; correct the method read() of the data set")


def test_a_part_that_is_not_arrays_is_refused(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Numbered, "read", lambda *_: (IMAGES, LABELS))
    with pytest.raises(ConfigError, match=r"train: read\(\) returned tuple instead of Arrays"):
        Numbered(**options()).load()


def test_options_are_refused_before_torch_is_imported() -> None:
    imports = ", ".join(f"ppll_cli.data.{name}" for name in DATA_SETS)
    program = (
        f"import sys, {imports}\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_program_makes_its_data_set(path: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(path)
    changes = {"root": str(tmp_path)} if path.stem == "imagefolder" else {}  # has no default root
    dataset = instantiate(config, **changes, _convert_="all")
    assert isinstance(dataset, Classified | PictureDataset | DetectionDataset)
    keys = [field.name for field in fields(dataset)]
    assert sorted(str(key) for key in config) == sorted(["_target_", *keys])
    # the program reads the types of options from the constructor
    assert set(get_type_hints(type(dataset).__init__)) == {*keys, "return"}


def test_every_data_set_has_a_config() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} >= DATA_SETS
