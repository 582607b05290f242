"""What a data set of pictures with classes is: where its files are, and how they become images."""

import hashlib
import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppll_cli.config.settings import usable_cores
from ppll_cli.data.classified import Classified
from ppll_cli.data.files import check_at_least, fixed_random, hold_out
from ppll_cli.data.labelled.crops import middle
from ppll_cli.data.labelled.images import images_of, kept_images
from ppll_cli.data.labelled.listing import Found, Listing, ListingError
from ppll_cli.data.labelled.loader import Wanted
from ppll_cli.data.labelled.loaders import Loaders
from ppll_cli.data.pictures.files import unreadable
from ppll_cli.leaves.machine import memory_bytes

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong option is refused without it
    import torch
    from PIL import Image
    from torch import Tensor

    from ppll_cli.data.batches import ImageBatches, Split
    from ppll_cli.data.identity import Entry, Identity
    from ppll_cli.models.unit import ImageSpec

CHECK_S = 3.0
"""Seconds in which as many pictures as possible are decoded at the start, where all cannot be."""

MOST_CHECKED = 50_000
"""No more pictures can be decoded in that time."""

MOST_BYTES = 4 << 30
"""Images are kept in memory up to this size, and up to a quarter of the memory."""

MOST_LOADERS = 16

_CHECK_SEED = 0


@dataclass(frozen=True, kw_only=True)
class LabelledPictures(Classified):
    """Pictures of any sizes with classes. A subclass says where they are.

    Images are squares out of the middle of the upright picture, resized with a filter that is
    antialiased. They are made once and mapped into memory or, where they are too many for that,
    decoded by loaders, which are processes of their own; the images are the same either way.

    Attributes:
        size: Height and width of the images, in pixels.
        loaders: How many processes decode pictures while others are trained on; 0: none, images are
            made once and kept; None: as many as there are cores to spare, if the images of all
            pictures do not fit in memory.
    """

    size: int
    loaders: int | None = None

    @abstractmethod
    def find(self) -> Found:
        """Lists the pictures and their classes, without opening a picture.

        Raises:
            ListingError: Files are missing, or contradict one another.
        """

    @property
    def middle(self) -> float:
        """Side of the square in the middle of a picture, whose shorter side is 1."""
        return 1.0

    @property
    def scale(self) -> tuple[float, float] | None:
        """Least and greatest part of a picture's area that is trained on; None: the middle is."""
        return None

    @property
    def channel_count(self) -> int:  # noqa: D102
        return 3

    @property
    def class_count(self) -> int:  # noqa: D102
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by their labels."""
        return self._found.classes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("size", self.size, 1)
        self.check_pad(self.size)
        if self.loaders is not None:
            check_at_least("loaders", self.loaders, 0, "or null")

    def inputs(
        self, picture: "Image.Image", image: "ImageSpec", device: "torch.device"
    ) -> "dict[str, Tensor]":
        """A picture of the user's, cut and resized as evaluation pictures are, and normalised."""
        from PIL import Image

        box, size = middle(*picture.size, self.middle), (image.width, image.height)
        cut = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box)
        return super().inputs(cut, image, device)

    def prepare(self) -> None:
        """Makes the images, or decodes some pictures, so that what cannot be read is found.

        Raises:
            ConfigError: Files are missing, or are not what they should be.
        """
        self._check_apart()
        if self.resident:
            self.load()
        else:
            self._check_some()

    def load(self) -> "Mapping[str, Split | Listing]":
        """The images of each split, or which pictures it has where loaders decode them."""
        return self._images if self.resident else self._splits

    @cached_property
    def _images(self) -> "Mapping[str, Split]":
        import torch

        from ppll_cli.data.batches import Split

        splits = {}
        for name, listing in self._splits.items():
            wanted = [Wanted(path, self.middle) for path in listing.paths]
            images = kept_images(wanted, self.size, self._processes)
            splits[name] = Split(torch.from_numpy(images), torch.from_numpy(listing.labels))
        return splits

    @property
    def resident(self) -> bool:
        """Whether images are made once and kept in memory, on the device of the first stage."""
        if self.loaders is not None:
            return self.loaders == 0
        needed = 3 * self.size**2 * sum(map(len, self._splits.values()))
        memory = memory_bytes()
        return needed <= (MOST_BYTES if memory is None else min(MOST_BYTES, memory // 4))

    def image_spec(self, splits: Any) -> "ImageSpec":
        """What images are like."""
        from ppll_cli.models.unit import ImageSpec

        return ImageSpec(3, self.size, self.size, tuple(self.mean), tuple(self.std))

    def identity(self, splits: Any) -> "Identity":
        """Names and sizes of the files, as a digest for each class."""
        return {name: self._entries(listing) for name, listing in self._splits.items()}

    def batches(
        self,
        splits: "Mapping[str, Split | Listing]",
        batch_size: int,
        seed: int,
        device: "torch.device",
    ) -> "ImageBatches":
        """What makes the batches of a run from what `load` returned."""
        from ppll_cli.data.batches import Batches, Split
        from ppll_cli.data.labelled.batches import LoadedBatches

        form = self.form(batch_size, seed, device)
        made = {name: split for name, split in splits.items() if isinstance(split, Split)}
        if made:
            return Batches(made, form)
        return LoadedBatches(
            self._splits,
            middle=self.middle,
            scale=self.scale,
            loaders=Loaders(self._processes, self.size),
            form=form,
        )

    @property
    def _processes(self) -> int:
        return self.loaders or max(1, min(MOST_LOADERS, usable_cores() - 1))

    @cached_property
    def _found(self) -> Found:
        try:
            found = self.find()
            for part, listing in found.parts.items():
                if not len(listing):
                    raise ListingError(self.folder, f"has no pictures for {part}", "add some")
        except ListingError as error:
            raise self.fault(error.source, error.problem, error.remedy) from error
        return found

    @cached_property
    def _splits(self) -> Mapping[str, Listing]:
        """`train`, `val` where there is one, `test`; the same in every run."""
        parts = dict(self._found.parts)
        train, test, val = parts["train"], parts.get("test"), parts.get("val")
        if val is not None and test is not None and self.val_fraction:
            raise self.fault(
                self.folder,
                f"has a part val, and data.val_fraction={self.val_fraction:g}",
                "give data.val_fraction=0",
            )
        if test is None:
            test, val = val, None
        if test is None or self.val_fraction:
            if not self.val_fraction:
                raise self.fault(
                    self.folder,
                    "has neither test nor val",
                    "add one, or give data.val_fraction=0.2: that part of the pictures is the test",
                )
            kept, held_out = hold_out(len(train), self.val_fraction)
            chosen = train.of(held_out)
            train = train.of(kept)
            test, val = (chosen, None) if test is None else (test, chosen)
        limit = slice(self.eval_limit)
        splits = {"train": train} if val is None else {"train": train, "val": val.of(limit)}
        return {**splits, "test": test.of(limit)}

    def _check_apart(self) -> None:
        """Checks that no file is in two splits; folders may be links."""
        real_folder = cache(os.path.realpath)
        seen: dict[str, str] = {}
        for split, listing in self._splits.items():
            for path in listing.paths:
                folder, name = os.path.split(path)
                other = seen.setdefault(f"{real_folder(folder)}/{name}", split)
                if other != split:
                    raise self.fault(
                        path, f"is in {other} and in {split}", "list it in one of them"
                    )

    def _check_some(self) -> None:
        paths = [path for split in self._splits.values() for path in split.paths]
        order = fixed_random(_CHECK_SEED).permutation(len(paths))[:MOST_CHECKED]
        mixed = [Wanted(paths[number], self.middle) for number in order]
        end_s = time.monotonic() + CHECK_S
        with closing(images_of(mixed, self.size, self._processes)) as images:
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
