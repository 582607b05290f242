"""The base class of data sets of labelled pictures of any size."""

import hashlib
import logging
import os
import time
from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppll_cli.config.settings import usable_cores
from ppll_cli.data.classified import Classified
from ppll_cli.data.files import cache_root, fixed_random, hold_out, repeated
from ppll_cli.data.kept import kept_folder, mapped_pixels, pixels_file, place
from ppll_cli.data.labelled.listing import Listing, ListingError, Parts, arranged
from ppll_cli.data.labelled.loader import Wanted, middle
from ppll_cli.data.labelled.loaders import images_of
from ppll_cli.data.pictures.cache import stamped
from ppll_cli.data.pictures.files import unreadable
from ppll_cli.data.source import Tensors
from ppll_cli.leaves.images import ImageSpec
from ppll_cli.leaves.limits import Count, Natural
from ppll_cli.leaves.machine import memory_bytes

if TYPE_CHECKING:  # not at run time: wrong options are refused before torch is imported
    import torch
    from PIL.Image import Image

    from ppll_cli.data.batches import Batches, Split
    from ppll_cli.data.identity import Entry, Identity
    from ppll_cli.data.labelled.batches import LoadedBatches

CHECK_S = 3.0
"""If loaders are used, a test at the start decodes pictures for about this many seconds."""

MOST_CHECKED = 50_000
"""Largest number of pictures that this test decodes."""

MOST_BYTES = 4 << 30
"""Largest total size in bytes of images in memory; a quarter of the memory is a second limit."""

MOST_LOADERS = 16
"""Largest number of loaders if the user gives no number."""

_SAID = 5000
"""Largest number of pictures that are resized without a log message."""

_CHECK_SEED = 0
_LIMIT_SEED = 20261129  # never change it: it decides which samples `eval_limit` keeps

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledPictures(Classified):
    """A data set of labelled pictures of any size. A subclass finds the pictures.

    An image is the square in the middle of the upright picture, resized with an antialiased filter.
    Images are made once, stored in the cache folder and mapped into memory. If they do not fit into
    memory, loaders (child processes) decode the same images during training.

    Attributes:
        size: Height and width of the images, in pixels.
        loaders: Number of loaders; 0 keeps images in memory. None means 0 if the images fit into
            memory, else the number of cores minus one (at least 1, at most `MOST_LOADERS`).
    """

    size: Count
    loaders: Natural | None = None

    channel_count = 3

    @abstractmethod
    def find(self) -> Parts:
        """List the pictures and their classes without opening a picture, or raise ListingError."""

    @property
    def middle(self) -> float:
        """Side of the square in the middle, as a fraction of the picture's shorter side."""
        return 1.0

    @property
    def scale(self) -> tuple[float, float] | None:
        """Smallest and largest area of random training pieces, as fractions of a picture's area.

        None if training uses the square in the middle.
        """
        return None

    @property
    def class_count(self) -> int:  # noqa: D102
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:  # noqa: D102
        return self._found[0]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_pad(self.size)

    def inputs(self, picture: "Image", image: ImageSpec, device: "torch.device") -> Tensors:
        """Cut out the middle of a user's picture as in evaluation, resize and normalise it.

        The result has the image, float32 [1, 3, H, W], under the name `IMAGE`. H and W are the
        height and width of `image`.
        """
        from PIL.Image import Resampling

        box, size = middle(*picture.size, self.middle), (image.width, image.height)
        cut = picture.convert("RGB").resize(size, Resampling.BILINEAR, box=box)
        return super().inputs(cut, image, device)

    def prepare(self) -> None:
        """Check that no picture is in two splits or two classes. Then decode the pictures.

        If loaders decode the pictures during training, decode only a few here, as a test. Log a
        warning if `val_fraction` holds out all pictures of a class.

        Raises:
            ConfigError: The pictures or their classes are not found, a picture is in two splits or
                classes or cannot be decoded, or there is no test set.
        """
        self._check_apart()
        if self.val_fraction:
            self._warn_of_lacking_classes()
        if self.resident:
            self.load()
        else:
            self._check_some()

    def load(self) -> "Mapping[str, Split | Listing]":
        """Return the images of each split, or the list of its pictures if loaders decode them."""
        return self._images if self.resident else self._splits

    @cached_property
    def _images(self) -> "Mapping[str, Split]":
        import torch

        from ppll_cli.data.batches import Split

        return {
            name: Split(torch.from_numpy(self._kept(listing)), torch.from_numpy(listing.labels))
            for name, listing in self._splits.items()
        }

    def _kept(self, listing: Listing) -> NDArray[np.uint8]:
        shape = (len(listing), 3, self.size, self.size)

        def make(folder: Path) -> None:
            if len(listing) > _SAID:
                log.warning(
                    "resizing %d pictures with %d processes; later runs find them in the cache",
                    len(listing),
                    self.processes,
                )
            with pixels_file(folder / "images.npy", *shape) as file:
                for images in self._decoded(listing.paths):
                    file.write(images.data)

        def read(folder: Path) -> NDArray[np.uint8]:
            return mapped_pixels(folder / "images.npy", *shape, mode="c")

        recipe = [self.size, [self.middle], [stamped(Path(path)) for path in listing.paths]]
        return kept_folder(place(cache_root() / "images", recipe), make, read)

    def _decoded(self, paths: Iterable[str]) -> Generator[NDArray[np.uint8], None, None]:
        return images_of([Wanted(path, self.middle) for path in paths], self.size, self.processes)

    @property
    def resident(self) -> bool:
        """Whether images are kept in memory; if not, loaders decode them during training."""
        if self.loaders is not None:
            return self.loaders == 0
        needed = 3 * self.size**2 * sum(map(len, self._splits.values()))
        memory = memory_bytes()
        return needed <= (MOST_BYTES if memory is None else min(MOST_BYTES, memory // 4))

    def image_spec(self, splits: Any) -> ImageSpec:
        """Return the shape, mean and standard deviation of the images. Ignore `splits`."""
        return ImageSpec(3, self.size, self.size, tuple(self.mean), tuple(self.std))

    def identity(self, splits: Any) -> "Identity":
        """Return a digest of file names and sizes for each class of each split. Ignore `splits`.

        Raises:
            ConfigError: A file cannot be examined.
        """
        return {name: self._entries(listing) for name, listing in self._splits.items()}

    def batches(
        self, splits: Any, batch_size: int, seed: int, device: "torch.device"
    ) -> "Batches | LoadedBatches":
        """Return an object that makes the run's batches. `splits` is the result of `load`."""
        from ppll_cli.data.batches import Batches
        from ppll_cli.data.labelled.batches import LoadedBatches

        if isinstance(splits["train"], Listing):
            return LoadedBatches(self, splits, batch_size, seed, device)
        return Batches(self, splits, batch_size, seed, device)

    @property
    def processes(self) -> int:
        """Number of processes that decode pictures, before training or during training."""
        return self.loaders or max(1, min(MOST_LOADERS, usable_cores() - 1))

    @cached_property
    def _found(self) -> tuple[tuple[str, ...], Mapping[str, Listing]]:
        try:
            return arranged(self.find())
        except ListingError as error:
            raise self.fault(*error.args) from error

    @cached_property
    def _splits(self) -> Mapping[str, Listing]:
        _, parts = self._found
        train = parts["train"]
        # The first of these is the split `test`; the second, if there is one, is `val`.
        evaluated = [self._limited(parts[part]) for part in ("test", "val") if part in parts]
        if self.val_fraction:
            if len(evaluated) == 2:
                problem = (
                    f"has a part val, so data.val_fraction={self.val_fraction:g} cannot make one"
                )
                raise self.fault(self.folder, problem, "give data.val_fraction=0")
            kept, held_out = hold_out(len(train), self.val_fraction, needed=not evaluated)
            evaluated.append(train.of(held_out[: self.eval_limit]))
            train = train.of(kept)
        if not evaluated:
            raise self.fault(
                self.folder,
                "has neither test nor val",
                "add one, or give data.val_fraction=0.2 to test on that part of the pictures",
            )
        val = {"val": evaluated[1]} if len(evaluated) > 1 else {}
        return {"train": train, **val, "test": evaluated[0]}

    def _limited(self, listing: Listing) -> Listing:
        # The first pictures may all be of one class.
        chosen = fixed_random(_LIMIT_SEED).permutation(len(listing))[: self.eval_limit]
        return listing.of(np.sort(chosen))

    def _warn_of_lacking_classes(self) -> None:
        lacking = np.setdiff1d(np.arange(self.class_count), self._splits["train"].labels)
        if len(lacking):
            log.warning(
                "data.val_fraction=%g holds out all pictures of the class %s%s: the model cannot "
                "learn a class that has no training pictures; give a smaller fraction, or add "
                "pictures",
                self.val_fraction,
                self.class_names[lacking[0]],
                f", and of {len(lacking) - 1} more" if len(lacking) > 1 else "",
            )

    def _check_apart(self) -> None:
        paths = {split: listing.paths for split, listing in self._splits.items()}
        for (split, number), (first_split, first) in repeated(paths):
            listing, earlier = self._splits[split], self._splits[first_split]
            name = self.class_names[listing.labels[number]]
            first_name = self.class_names[earlier.labels[first]]
            if split != first_split:
                problem = f"is in {first_split} and in {split}"
            elif name != first_name:
                problem = f"is in class {first_name} and in class {name}"
            else:
                continue
            raise self.fault(listing.paths[number], problem, "keep it in only one")

    def _check_some(self) -> None:
        paths = [path for split in self._splits.values() for path in split.paths]
        order = fixed_random(_CHECK_SEED).permutation(len(paths))[:MOST_CHECKED]
        end_s = time.monotonic() + CHECK_S
        with closing(self._decoded(paths[number] for number in order)) as images:
            while time.monotonic() < end_s and next(images, None) is not None:
                pass

    def _entries(self, listing: Listing) -> "Sequence[Entry]":
        digests: dict[str, Any] = {}
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True):
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise unreadable(Path(path), error) from error
            digest = digests.setdefault(self.class_names[label], hashlib.sha256())
            digest.update(os.fsencode(f"{os.path.basename(path)} {size}\n"))
        return [(name, digest.hexdigest()) for name, digest in digests.items()]
