"""The base class of data sets of labelled images that all have one size and fit into memory.

Legend: N samples, C channels, H height, W width (pixels).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ppll_cli.data.classified import Classified
from ppll_cli.data.files import Part, fixed_random, hold_out
from ppll_cli.leaves.images import ImageSpec

__all__ = ["Arrays", "ImageDataset", "Part", "fixed_random"]  # users' data sets import these names

if TYPE_CHECKING:  # not at run time: wrong options are refused before torch is imported
    import torch

    from ppll_cli.data.batches import Batches, Split
    from ppll_cli.data.identity import Identity


@dataclass(frozen=True)
class Arrays:
    """Training or test images and their labels, as they were read, not yet checked.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: The classes of the images, integers [N], from 0.
        source: Name of the files that were read, for error messages.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    source: str

    def __getitem__(self, samples: slice | NDArray[Any]) -> "Arrays":
        return Arrays(self.images[samples], self.labels[samples], self.source)


@dataclass(frozen=True, kw_only=True)
class ImageDataset(Classified):
    """A data set of labelled images that all have one size. A subclass reads its files.

    A subclass that adds settings must be a frozen keyword-only dataclass with a field for each.

    Attributes:
        remedy: What error messages tell the user to do if `read` returns wrong images or labels.
    """

    remedy: ClassVar[str] = "correct the method read() of the data set"

    @abstractmethod
    def read(self, part: Part) -> Arrays:
        """Read the training or test images and their labels.

        Raises:
            ConfigError: A file cannot be read, or has the wrong content.
        """

    def prepare(self) -> None:
        """Make sure that the files exist; by default, do nothing.

        The parent process calls this before workers start.

        Raises:
            ConfigError: Files are missing, and downloading them failed or is not allowed.
        """

    def image_spec(self, splits: "dict[str, Split]") -> ImageSpec:
        """Return channels, height, width, mean and standard deviation of the images."""
        _, channels, height, width = splits["train"].images.shape
        return ImageSpec(channels, height, width, tuple(self.mean), tuple(self.std))

    def identity(self, splits: "dict[str, Split]") -> "Identity | None":
        """Return digests of each split's pixels and labels, to notice when the data have changed.

        The result is None if a split is not a `ppll_cli.data.batches.Split`.
        """
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
        """Return an object that copies the splits to the device and makes batches there."""
        from ppll_cli.data.batches import Batches

        return Batches(self, splits, batch_size, seed, device)

    def load(self) -> "dict[str, Split]":
        """Read and check the data, and divide it into splits.

        The splits are `train` and `test`, and `val` if `val_fraction` is not 0. They do not depend
        on the run's seed.

        Raises:
            ConfigError: Files are missing, or their content is wrong; `pad` is not less than the
                images' shorter side; or `val_fraction` holds out no sample or all samples.
        """
        train, test = self._checked("train"), self._checked("test")
        if train.images.shape[1:] != test.images.shape[1:]:
            own, others = test.images.shape[1:], train.images.shape[1:]
            problem = f"its images have the shape {own}, but the training images {others}"
            raise self.fault(test.source, problem, self.remedy)
        self.check_pad(min(train.images.shape[2:]))
        parts = {"train": train}
        if self.val_fraction:
            kept, held_out = hold_out(len(train.labels), self.val_fraction)
            parts = {"train": train[kept], "val": train[held_out[: self.eval_limit]]}
        parts["test"] = test[: self.eval_limit]
        return {name: _split(arrays) for name, arrays in parts.items()}

    def _checked(self, part: Part) -> Arrays:
        arrays = self.read(part)
        if not isinstance(arrays, Arrays):
            problem = f"read() returned {type(arrays).__name__} instead of Arrays"
            raise self.fault(part, problem, self.remedy)
        problem = _problem(arrays, self.channel_count, self.class_count)
        if problem:
            raise self.fault(arrays.source, problem, self.remedy)
        return arrays


def _problem(arrays: Arrays, channels: int, classes: int) -> str | None:
    images, labels = arrays.images, arrays.labels
    for name, values in (("images", images), ("labels", labels)):
        if not isinstance(values, np.ndarray):
            return f"holds {name} as {type(values).__name__}, not as a NumPy array"
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

    # from_numpy needs writable memory; samples are copied fastest from contiguous memory.
    images = np.require(arrays.images, requirements=["C", "W"])
    return Split(torch.from_numpy(images), torch.from_numpy(arrays.labels.astype(np.int64)))
