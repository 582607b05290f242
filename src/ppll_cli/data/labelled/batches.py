"""Makes batches of pictures. Loaders (child processes) decode the next batches in advance."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ppll_cli import seeding
from ppll_cli.data.batches import ImageBatches, Images, generator_of
from ppll_cli.data.labelled.listing import Listing
from ppll_cli.data.labelled.loader import TRIES, Wanted
from ppll_cli.data.labelled.loaders import DecodedAhead, Loaders, Loading
from ppll_cli.data.staging import to_device

if TYPE_CHECKING:  # not at run time: the data set's file imports this file
    from ppll_cli.data.labelled.dataset import LabelledPictures


AHEAD = 2
"""Number of batches after the current batch that loaders decode in advance."""


class LoadedBatches(ImageBatches[Listing]):
    """Makes batches of pictures that loaders decode during training and evaluation.

    Only one thread may make training batches, and only one may make evaluation batches. If a
    batch cannot be decoded, the methods raise the exceptions of `Loading.images`.
    """

    in_advance = True

    dataset: "LabelledPictures"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._loaders = Loaders(self.dataset.processes, self.dataset.size)
        self._training = DecodedAhead(self._begin_training)
        self._evaluating = DecodedAhead(self._begin_evaluation)
        self._evaluated = ("", 0)  # split and first sample of the latest evaluation batch

    def training_images(self, epoch: int, batch: int) -> Images:  # noqa: D102
        steps = [epoch * self.steps_per_epoch + batch + later for later in range(AHEAD + 1)]
        keys = [divmod(step, self.steps_per_epoch) for step in steps]
        labels = self.splits["train"].labels[self.chosen(epoch, batch).numpy()]
        return self._on_device(self._training.images(keys), labels)

    def evaluation_images(self, split: str, first: int, last: int) -> Images:  # noqa: D102
        size, end = last - first, len(self.splits[split])
        before, self._evaluated = self._evaluated, (split, first)
        # Replicas evaluate batches in turn. So guess that the step from this batch to the next one
        # is as large as the step from the previous batch to this one.
        step = first - before[1] if before[0] == split and first > before[1] else size
        starts = range(first, end, step)[: AHEAD + 1]
        keys = [(split, start, min(start + size, end)) for start in starts]
        labels = self.splits[split].labels[first:last]
        return self._on_device(self._evaluating.images(keys), labels)

    def _on_device(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Images:
        return (
            to_device(torch.from_numpy(images), self.device),
            to_device(torch.from_numpy(labels), self.device),
        )

    def _begin_training(self, key: tuple[int, int]) -> Loading:
        paths, scale = self.splits["train"].paths, self.dataset.scale
        numbers = self.chosen(*key).tolist()
        if scale is None:
            return self._loaders.begin([Wanted(paths[n], self.dataset.middle) for n in numbers])
        generator = generator_of(seeding.crop(self.seed, *key))
        draws = torch.rand(len(numbers), TRIES, 4, generator=generator, dtype=torch.float64)
        pieces = zip(numbers, draws.tolist(), strict=True)
        return self._loaders.begin([Wanted(paths[n], scale=scale, draws=own) for n, own in pieces])

    def _begin_evaluation(self, key: tuple[str, int, int]) -> Loading:
        split, first, last = key
        paths = self.splits[split].paths[first:last]
        return self._loaders.begin([Wanted(path, self.dataset.middle) for path in paths])
