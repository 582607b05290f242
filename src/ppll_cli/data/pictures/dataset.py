"""The base class of data sets for super-resolution."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from ppll_cli.data.files import Files, Part, cache_root, hold_out, sample_name
from ppll_cli.data.pictures.cache import Size, Source, kept, large_size
from ppll_cli.data.pictures.files import unreadable
from ppll_cli.data.pictures.tiles import PictureSplit, Tile, spans
from ppll_cli.data.source import EvaluationForm, Predict, Prediction, Tensors
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.images import IMAGE, ImageSpec
from ppll_cli.leaves.limits import Count, Natural, Share

if TYPE_CHECKING:  # not at run time: wrong options are refused before torch is imported
    import torch
    from PIL.Image import Image

    from ppll_cli.data.identity import Identity
    from ppll_cli.data.pictures.patches import PatchBatches
    from ppll_cli.tasks.super_resolution import SuperResolution


@dataclass(frozen=True, kw_only=True)
class PictureDataset(Files, ABC):
    """A data set of pairs: a large picture and its small version. A subclass finds the files.

    A model is trained on patches, which are random parts of pictures. It is evaluated on tiles,
    which together cover a picture. Pictures may differ in size; they are not downloaded.
    The option `eval_limit` counts pictures, not tiles.

    Attributes:
        cache: Folder for decoded pictures; None for the folder `pictures` in the cache folder.
        scale: Factor by which the model enlarges height and width.
        patch: Height and width of a training patch, in pixels of the small picture.
        patches_per_epoch: Number of training patches per epoch.
        flip: Whether patches are randomly mirrored and rotated by multiples of 90 degrees.
        tile: Largest height and width of evaluation tiles, in pixels of the small picture.
        overlap: Smallest width of a tile's margin, in pixels of the small picture. The model reads
            the margin, but its output there is not used. A tile has no margin at the picture's
            border.
        mean: Mean of the pixels of each channel, in [0, 1]. Models subtract it from their input and
            add it to their output.
    """

    cache: str | None
    scale: Literal[2, 3, 4]
    patch: Annotated[int, Field(ge=8)]
    patches_per_epoch: Count
    flip: bool
    tile: int
    overlap: Natural
    mean: Annotated[list[Share], Field(min_length=3, max_length=3)]

    @abstractmethod
    def sources(self, part: Part) -> Sequence[Source]:
        """Return the files of the training or test pictures. `val` is later taken from `train`.

        Raises:
            ConfigError: Files are missing, or there are too few pictures.
        """

    @property
    def longest(self) -> int | None:
        """Limit for the longer side of large pictures, in pixels; None for no limit.

        Pictures above the limit are reduced.
        """
        return None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile <= 2 * self.overlap:
            problem = f"must be more than twice data.overlap={self.overlap}"
            raise ConfigError("data.tile", self.tile, problem)

    def prepare(self) -> None:
        """Decode the pictures into the cache folder, if they are not there yet."""
        self.load()

    def load(self) -> dict[str, PictureSplit]:
        """Return the splits `train` and `test`, and `val` if `val_fraction` is not 0.

        They do not depend on the run's seed.

        Raises:
            ConfigError: A picture is missing, too small, repeated or cannot be decoded, or
                `val_fraction` holds out no picture or all pictures.
        """
        divided = self._divided().items()
        return {name: self._split(sources, name == "train") for name, sources in divided}

    def _split(self, sources: Sequence[Source], trained: bool) -> PictureSplit:
        folder = Path(os.path.expanduser(self.cache)) if self.cache else cache_root() / "pictures"
        sizes = [self._size(source.high, trained) for source in sources]
        pictures = kept(folder, sources, sizes, self.scale, self.longest, not trained)
        tiles = () if trained else self._tiles([low.shape for low in pictures.low])
        return PictureSplit(pictures, self.patches_per_epoch if trained else 0, tiles)

    def evaluated(
        self, splits: Mapping[str, PictureSplit], name: str
    ) -> Mapping[str, PictureSplit]:
        """Return `splits` with tiles for the split `name`, so that it can be evaluated."""
        if splits[name].tiles:
            return splits
        return {**splits, name: self._split(self._divided()[name], trained=False)}

    def _divided(self) -> dict[str, Sequence[Source]]:
        train = list(self.sources("train"))
        divided = {"train": train}
        if self.val_fraction:
            kept, held_out = hold_out(len(train), self.val_fraction)
            divided["train"] = [train[number] for number in kept]
            divided["val"] = [train[number] for number in held_out][: self.eval_limit]
        test = self.sources("test")
        self._check_apart([train, test])
        divided["test"] = list(test)[: self.eval_limit]
        return {**divided}

    def _check_apart(self, parts: Iterable[Sequence[Source]]) -> None:
        # Device and inode tell that two paths name the same file, also through links.
        seen: dict[tuple[int, int], Path] = {}
        for sources in parts:
            for source in sources:
                try:
                    status = source.high.stat()
                except OSError as error:
                    raise unreadable(source.high, error) from error
                first = seen.setdefault((status.st_dev, status.st_ino), source.high)
                if first is not source.high:
                    problem = f"is the same file as {first}, so a test picture may be trained on"
                    raise ConfigError("data", source.high, problem, "list each picture once")

    def _size(self, file: Path, trained: bool) -> Size:
        # SSIM leaves out a border of `scale` pixels, and has a window of 11x11 pixels.
        least = self.patch if trained else -(-(11 + 2 * self.scale) // self.scale)
        size = large_size(file, self.scale, self.longest)
        height, width = (side // self.scale for side in size)
        if min(height, width) < least:
            need = f"data.patch={self.patch}" if trained else "SSIM"
            whole = f"{least * self.scale}x{least * self.scale}"
            problem = (
                f"has {width}x{height} pixels after division by {self.scale}, too few for {need}; "
                f"before the division it needs at least {whole}"
            )
            then = "remove it, or give a smaller data.patch" if trained else "remove it"
            raise ConfigError("data", file, problem, then)
        return size

    def _tiles(self, shapes: Sequence[Sequence[int]]) -> tuple[Tile, ...]:
        return tuple(
            Tile(number, rows, columns)
            for number, (height, width, _) in enumerate(shapes)
            for rows in spans(height, self.tile, self.overlap)
            for columns in spans(width, self.tile, self.overlap)
        )

    @property
    def task(self) -> "SuperResolution":
        """Super-resolution by the scale of this data set."""
        from ppll_cli.tasks.super_resolution import SuperResolution

        return SuperResolution(self.scale, self.patch, tuple(self.mean), self.overlap)

    def image_spec(self, splits: Mapping[str, PictureSplit]) -> ImageSpec:
        """Return the shape of training images, which are not normalised."""
        return ImageSpec(3, self.patch, self.patch)

    def evaluation_form(self, splits: Mapping[str, PictureSplit]) -> EvaluationForm:
        """Return the largest shapes of evaluation batches; each batch is one tile."""
        tiles = [tile for split in splits.values() for tile in split.tiles]
        height = max(tile.rows.stop - tile.rows.start for tile in tiles)
        width = max(tile.columns.stop - tile.columns.start for tile in tiles)
        image = ImageSpec(3, height, width)
        return EvaluationForm(image, self.task.tile_targets(height, width), samples=1)

    def draw_samples(self, predict: Predict, folder: Path) -> None:
        """Create `folder`, and write a picture there for each picture of the test set.

        Each file compares the middle of the model's output to that of the original.
        """
        from ppll_cli.data.pictures.samples import captioned, views

        pictures = self.load()["test"].pictures
        sources = self.sources("test")[: len(pictures)]
        folder.mkdir()
        each = zip(sources, pictures.low, pictures.high, strict=True)
        for number, (source, low, high) in enumerate(each):
            found = views(low, high, self.scale, self.overlap, predict)
            captioned(found).save(folder / sample_name(number, source.high))

    def file_names(self, split: str) -> tuple[str, ...]:
        """Return the file names of the original (large) pictures of a split, in order."""
        return tuple(source.high.name for source in self._divided()[split])

    def inputs(self, picture: "Image", image: ImageSpec, device: "torch.device") -> Tensors:
        """Return the pixels of a user's picture in [0, 1], float32 [1, 3, H, W], as `IMAGE`."""
        from ppll_cli.data.pictures.patches import as_images

        return {IMAGE: as_images([np.asarray(picture.convert("RGB"))], device)}

    def predicted(self, predict: Predict, picture: "Image", inputs: Tensors) -> Prediction:
        """Enlarge a user's picture tile by tile, as in the evaluation of test pictures.

        The result has the enlarged picture's width and height in pixels, and the picture itself.
        """
        from ppll_cli.data.pictures.samples import enlarged

        made = enlarged(inputs[IMAGE], self._tiles([(picture.height, picture.width, 3)]), predict)
        return Prediction({"width": made.width, "height": made.height}, made)

    def identity(self, splits: Mapping[str, PictureSplit]) -> "Identity":
        """Return the name and the size, in bytes, of each picture file, by split."""
        from ppll_cli.data.identity import of_files

        return {
            name: of_files(p for source in sources for p in (source.high, source.low) if p)
            for name, sources in self._divided().items()
        }

    def batches(
        self,
        splits: Mapping[str, PictureSplit],
        batch_size: int,
        seed: int,
        device: "torch.device",
    ) -> "PatchBatches":
        """Return an object that makes batches of patches and of tiles."""
        from ppll_cli.data.pictures.patches import PatchBatches

        return PatchBatches(self, splits, batch_size, seed, device)
