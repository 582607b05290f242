"""What a data set of labelled images is: how its files become the splits of a run.

Legend: N samples, C channels, H height, W width (pixels).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.classified import Classified
from ppll_cli.data.files import Part, fixed_random, hold_out

__all__ = ["Arrays", "ImageDataset", "Part", "fixed_random"]  # for data sets of a user's own

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong option is refused without it
    import torch

    from ppll_cli.data.batches import Batches, Split
    from ppll_cli.data.identity import Identity
    from ppll_cli.models.unit import ImageSpec


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
