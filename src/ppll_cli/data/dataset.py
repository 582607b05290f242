"""What a data set of labelled images is: how its files become the splits of a run.

Legend: N samples, C channels, H height, W width (pixels).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.cache import cache_folder

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong option is refused without it
    import torch
    from PIL import Image
    from torch import Tensor

    from ppll_cli.data.batches import Batches, Form, Split
    from ppll_cli.data.identity import Identity
    from ppll_cli.data.source import EvaluationForm, Prediction
    from ppll_cli.models.unit import ImageSpec
    from ppll_cli.tasks.classification import Classification

Part = Literal["train", "test"]
"""What the files of a data set are divided into; `val` is a piece of `train`."""

PARTS: tuple[Part, ...] = ("train", "test")

PAD_MODES = ("zeros", "reflect")
AUGMENTATIONS = ("basic", "randaugment", "none")
MIXED_BY = ("mixup", "cutmix")
_LONGEST_STEM = 50  # characters of up to 4 bytes; file systems allow 255 bytes a name
_HOLD_OUT_SEED = 20240607  # any number, but never another: it decides which samples are `val`


@dataclass(frozen=True)
class Arrays:
    """A part as it was read, not yet checked.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: Integers [N], from 0.
        source: The files it was read from, for messages.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    source: str

    def __getitem__(self, samples: slice | NDArray[Any]) -> "Arrays":
        return Arrays(self.images[samples], self.labels[samples], self.source)


def cache_root() -> Path:
    """The user's cache folder for data, which `data.root=null` stands for; it may not exist yet.

    Raises:
        ConfigError: The user has no home folder.
    """
    folder = cache_folder()
    if folder is None:
        raise ConfigError(
            "data.root", "null", "there is no home folder to keep data in", "set HOME, or a root"
        )
    return folder / "data"


@dataclass(frozen=True, kw_only=True)
class Files:
    """What all data sets have, whatever is in their files.

    Attributes:
        root: Folder with the files; None is `cache_root()`.
        download: Missing files may be downloaded into the root.
        val_fraction: Part of the training set, in [0, 1), that is held out as `val`.
        drop_last: The last training batch of an epoch is left out where it is shorter.
        eval_limit: How many samples `val` and `test` have at most; None is all.

    Raises:
        ConfigError: A value cannot be.
    """

    root: str | None
    download: bool
    val_fraction: float
    drop_last: bool
    eval_limit: int | None

    def __post_init__(self) -> None:
        if self.root is not None and not readable(self.root):
            raise ConfigError(
                "data.root", self.root, "is no folder that can be read", "create it, or give null"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(
                "data.val_fraction", self.val_fraction, "is out of range", "give 0 <= fraction < 1"
            )
        if self.eval_limit is not None:
            check_at_least("eval_limit", self.eval_limit, 1, "or null for all")

    @property
    def folder(self) -> Path:
        """Where the files are, or will be downloaded to."""
        return cache_root() if self.root is None else Path(os.path.expanduser(self.root))

    @property
    def given_root(self) -> str:
        """The root as the user would write it."""
        return "null" if self.root is None else self.root

    def fault(
        self, source: object, problem: str, remedy: str = "put the published file there"
    ) -> ConfigError:
        """The error for a file that is not what it should be."""
        return ConfigError("data.root", self.given_root, f"{source}: {problem}", remedy)


@dataclass(frozen=True, kw_only=True)
class Classified(Files, ABC):
    """Settings and preprocessing that all data sets for classification share.

    Attributes:
        mean: Mean of the pixels in [0, 1]: one value, or one a channel.
        std: Standard deviation of the pixels in [0, 1]: one value, or one a channel.
        pad: How far a training image is shifted at most by the random crop, in pixels; 0 is off.
        pad_mode: What is behind an image's border, black or its mirror image.
        flip: Half of the training images are mirrored from left to right.
        augment: `basic`: random crop and flip, by `pad` and `flip`; `randaugment`: these, then
            RandAugment; `none`: training images stay as they are.
        mixup: Alpha of Mixup, which mixes the images of a training batch in pairs; 0 is off.
        cutmix: Alpha of CutMix, which does so by boxes; 0 is off.
    """

    mean: list[float]
    std: list[float]
    pad: int
    pad_mode: Literal["zeros", "reflect"]
    flip: bool
    # Runs from before these keys can be resumed, so they have defaults.
    augment: Literal["basic", "randaugment", "none"] = "basic"
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    @abstractmethod
    def class_count(self) -> int:
        """How many classes there are; labels are 0 to one less."""

    @property
    @abstractmethod
    def channel_count(self) -> int:
        """How many channels an image has."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by their labels; the labels' numbers where nothing better is known.

        A subclass that knows names has them here.
        """
        return tuple(map(str, range(self.class_count)))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("pad", self.pad, 0)
        for key, known in (("pad_mode", PAD_MODES), ("augment", AUGMENTATIONS)):
            if (value := getattr(self, key)) not in known:
                raise ConfigError(
                    f"data.{key}", value, "is unknown", f"choose {' or '.join(known)}"
                )
        check_normalisation(self.mean, self.std, self.channel_count)
        for key in MIXED_BY:
            if not 0 <= (alpha := getattr(self, key)) < inf:
                problem = "must be finite and not negative"
                raise ConfigError(f"data.{key}", alpha, problem, "give 0 for none of it")

    @property
    def mixed(self) -> dict[str, float]:
        """The keys that have training images mixed in pairs, with their values."""
        values = {f"data.{key}": getattr(self, key) for key in MIXED_BY}
        return {key: alpha for key, alpha in values.items() if alpha}

    @property
    def task(self) -> "Classification":
        """What is learnt from this data set."""
        from ppll_cli.tasks.classification import Classification

        return Classification(self.class_count)

    def evaluation_form(self, splits: Any) -> "EvaluationForm | None":
        """None: evaluation batches are like training batches."""
        return None

    def check_pad(self, side: int) -> None:
        """Refuses a shift that would leave nothing of an image.

        Args:
            side: The image's shorter side, in pixels.

        Raises:
            ConfigError: The shift is too large.
        """
        if self.pad >= side:
            raise ConfigError("data.pad", self.pad, f"images measure {side} pixels", "give less")

    def form(self, batch_size: int, seed: int, device: "torch.device") -> "Form":
        """How a run's batches are made of images, wherever these come from."""
        from ppll_cli.data.augment import Augmentation
        from ppll_cli.data.batches import Form
        from ppll_cli.data.mixing import Mixing

        return Form(
            mean=self.mean,
            std=self.std,
            augmentation=Augmentation(self.augment, self.pad, self.pad_mode, self.flip),
            mixing=Mixing(self.mixup, self.cutmix),
            drop_last=self.drop_last,
            batch_size=batch_size,
            seed=seed,
            device=device,
        )

    def inputs(
        self, picture: "Image.Image", image: "ImageSpec", device: "torch.device"
    ) -> "dict[str, Tensor]":
        """A picture of the user's as the model takes it: fitted to its size, and normalised."""
        from ppll_cli.data.augment import normalise, per_channel
        from ppll_cli.data.one_picture import fitted
        from ppll_cli.models.unit import IMAGE

        mean, std = per_channel(self.mean, device), per_channel(self.std, device)
        return {IMAGE: normalise(fitted(picture, image).to(device), mean, std)}

    def predicted(
        self,
        predict: "Callable[[Tensor], Tensor]",
        picture: "Image.Image",
        inputs: "dict[str, Tensor]",
    ) -> "Prediction":
        """The classes that the model finds in a picture of the user's, with their probabilities."""
        from ppll_cli.data.one_picture import labelled
        from ppll_cli.models.unit import IMAGE

        found = self.task.probabilities(predict(inputs[IMAGE]))[0]
        return labelled(found.tolist(), self.class_names)


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Classified):
    """Labelled images of one size. A subclass says what they are and how its files are read.

    Keys of its own are fields of a subclass that is again a keyword-only dataclass.
    """

    @abstractmethod
    def read(self, part: Part) -> Arrays:
        """Reads one part of the data set.

        Raises:
            ConfigError: A file cannot be read, or is not what it should be.
        """

    def prepare(self) -> None:
        """Makes sure that the files exist; in the parent process, before any worker starts.

        Raises:
            ConfigError: Files are missing and could not be, or may not be, downloaded.
        """

    def image_spec(self, splits: "dict[str, Split]") -> "ImageSpec":
        """What the images in what `load` returned are like."""
        from ppll_cli.models.unit import ImageSpec

        _, channels, height, width = splits["train"].images.shape
        return ImageSpec(channels, height, width, tuple(self.mean), tuple(self.std))

    def identity(self, splits: "dict[str, Split]") -> "Identity | None":
        """The pixels and labels of each split, by digests; None where a subclass loads others."""
        from ppll_cli.data.batches import Split
        from ppll_cli.data.identity import of_arrays

        if not all(isinstance(split, Split) for split in splits.values()):
            return None
        return {
            name: of_arrays({"images": split.images.numpy(), "labels": split.labels.numpy()})
            for name, split in splits.items()
        }

    def batches(
        self, splits: "dict[str, Split]", batch_size: int, seed: int, device: "torch.device"
    ) -> "Batches":
        """What makes the batches of a run from what `load` returned."""
        from ppll_cli.data.batches import Batches

        return Batches(splits, self.form(batch_size, seed, device))

    def load(self) -> "dict[str, Split]":
        """Reads, checks and divides the data: `train`, `val` where a fraction is held out, `test`.

        The division is the same in every run; the run's seed has no part in it.

        Raises:
            ConfigError: Files are missing or corrupt, or too few samples are there to hold out
                the wanted fraction.
        """
        train, test = self._checked("train"), self._checked("test")
        if train.images.shape[1:] != test.images.shape[1:]:
            sizes = f"{test.images.shape[1:]}, the training images {train.images.shape[1:]}"
            raise self.fault(test.source, f"its images are {sizes}")
        self.check_pad(min(train.images.shape[2:]))
        parts = {"train": train}
        if self.val_fraction:
            parts["train"], val = self._hold_out(train)
            parts["val"] = val[: self.eval_limit]
        parts["test"] = test[: self.eval_limit]
        return {name: _split(arrays) for name, arrays in parts.items()}

    def _checked(self, part: Part) -> Arrays:
        arrays = self.read(part)
        problem = _problem(arrays, self.channel_count, self.class_count)
        if problem:
            raise self.fault(arrays.source, problem)
        return arrays

    def _hold_out(self, train: Arrays) -> tuple[Arrays, Arrays]:
        kept, held_out = hold_out(len(train.labels), self.val_fraction)
        return train[kept], train[held_out]


def fixed_random(seed: int) -> np.random.RandomState:
    """A generator for what is the same in every run.

    NumPy has frozen the stream of this old class, which it promises for none of its newer ones.
    """
    return np.random.RandomState(seed)


def hold_out(samples: int, fraction: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Which training samples are kept, in order, and which are `val`.

    What is held out stays in drawn order: its first n are fair too.

    Raises:
        ConfigError: Nothing would be left on one side.
    """
    count = round(fraction * samples)
    if not 0 < count < samples:
        raise ConfigError(
            "data.val_fraction",
            fraction,
            f"holds out {count} of {samples} training samples",
            "give a fraction that leaves a sample on both sides, or 0 for no `val`",
        )
    held_out = fixed_random(_HOLD_OUT_SEED).permutation(samples)[:count]
    return np.setdiff1d(np.arange(samples), held_out), held_out


def check_at_least(key: str, value: int, least: int, otherwise: str = "") -> None:
    """Refuses a smaller value of `data.<key>`.

    Raises:
        ConfigError: It is smaller.
    """
    if not value >= least:
        raise ConfigError(
            f"data.{key}", value, "is too small", f"give at least {least} {otherwise}".rstrip()
        )


def check_normalisation(mean: list[float], std: list[float], channels: int) -> None:
    """Checks `data.mean` and `data.std`: one value, or one a channel.

    Raises:
        ConfigError: One cannot be.
    """
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"data.{key}",
                values,
                f"has {len(values)} values, the images have {channels} channels",
                "give one value, or one a channel",
            )
        if not all(isfinite(value) for value in values):
            raise ConfigError(f"data.{key}", values, "is not finite", "give finite numbers")
    if min(std) <= 0:
        raise ConfigError("data.std", std, "is not positive", "give values above 0")


def sample_name(number: int, file: Path | None) -> str:
    """The name of a picture in samples/, which is no other one's.

    Args:
        number: Number of the picture in the test split.
        file: Where the picture comes from, if it is from a file.
    """
    stem = "" if file is None else file.stem[:_LONGEST_STEM]
    clean = "".join(each if each.isprintable() else "_" for each in stem)
    return f"{number}-{clean}.png" if clean else f"{number}.png"


def readable(root: str) -> bool:
    """Whether it is a folder whose files can be listed."""
    folder = os.path.expanduser(root)
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)


def _problem(arrays: Arrays, channels: int, classes: int) -> str | None:
    """What is wrong with a part, if anything."""
    images, labels = arrays.images, arrays.labels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != channels:
        return f"holds images {images.dtype} {images.shape}, not uint8 [N, {channels}, H, W]"
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        return f"holds labels {labels.dtype} {labels.shape}, not integers [N]"
    if len(images) != len(labels):
        return f"holds {len(images)} images and {len(labels)} labels"
    if not images.size:
        return "holds no images"
    if labels.min() < 0 or labels.max() >= classes:
        return f"holds labels {labels.min()} to {labels.max()}, not 0 to {classes - 1}"
    return None


def _split(arrays: Arrays) -> "Split":
    import torch

    from ppll_cli.data.batches import Split

    # from_numpy wants memory that it may write to, and the gathers later want it in order
    images = np.require(arrays.images, requirements=["C", "W"])
    return Split(torch.from_numpy(images), torch.from_numpy(arrays.labels.astype(np.int64)))
