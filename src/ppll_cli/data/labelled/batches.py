"""Makes batches of pictures that loaders (child processes) decode during earlier batches.

Legend: B batch, C channels, H height, W width (pixels of the images).
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.data.batches import EpochOrder, ImageBatches, Images, generator_of
from ppll_cli.data.labelled.crops import TRIES
from ppll_cli.data.labelled.dataset import LabelledPictures
from ppll_cli.data.labelled.listing import Listing
from ppll_cli.data.labelled.loader import Wanted
from ppll_cli.data.labelled.loaders import Loaders, Loading
from ppll_cli.data.staging import to_device

AHEAD = 2
"""Number of batches after the current batch that loaders decode in advance."""

Key = TypeVar("Key", bound=Hashable)


class Underway(Generic[Key]):
    """The batches that loaders are decoding. Only one thread may use this object.

    Args:
        begin: Starts to decode a batch, given its key.
    """

    def __init__(self, begin: Callable[[Key], Loading]) -> None:
        self._begin, self._begun = begin, dict[Key, Loading]()

    @contextmanager
    def images(self, keys: Sequence[Key]) -> Iterator[NDArray[np.uint8]]:
        """Provide the images of the first batch in `keys`, uint8 [B, 3, H, W].

        Loaders begin or continue to decode the other batches in `keys`. All other batches that were
        begun are dropped.

        Args:
            keys: The key of the current batch, then the keys of the batches to decode ahead.
        """
        for key in [key for key in self._begun if key not in keys]:
            self._begun.pop(key).release()
        for key in keys:
            if key not in self._begun:
                self._begun[key] = self._begin(key)
        loading = self._begun.pop(keys[0])
        try:
            yield loading.images()
        finally:
            loading.release()


class LoadedBatches(ImageBatches):
    """Makes batches of pictures that are decoded when they are needed.

    Only one thread may make training batches, and only one may make evaluation batches.

    See `ppll_cli.data.source.Dataset.batches` for the other arguments.

    Args:
        splits: The pictures of each split.
        loaders: The processes that decode the pictures.
    """

    def __init__(
        self,
        dataset: LabelledPictures,
        splits: Mapping[str, Listing],
        loaders: Loaders,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(dataset, splits, batch_size, seed, device)
        self._splits, self._loaders = splits, loaders
        self._middle, self._scale = dataset.middle, dataset.scale
        self._order = EpochOrder(self.samples["train"], seed)
        self._training = Underway(self._begin_training)
        self._evaluating = Underway(self._begin_evaluation)
        self._evaluated = ("", 0)  # split and first sample of the last evaluation batch

    @contextmanager
    def training_images(self, epoch: int, batch: int) -> Iterator[Images]:  # noqa: D102
        steps = [epoch * self.steps_per_epoch + batch + later for later in range(AHEAD + 1)]
        keys = [divmod(step, self.steps_per_epoch) for step in steps]
        labels = self._splits["train"].labels[self._chosen(epoch, batch)]
        with self._training.images(keys) as images:
            yield self._on_device(images, labels)

    @contextmanager
    def evaluation_images(self, split: str, first: int, last: int) -> Iterator[Images]:  # noqa: D102
        size, end = last - first, self.samples[split]
        before, self._evaluated = self._evaluated, (split, first)
        # Replicas take batches in turn, so this replica skips the batches of other replicas. Assume
        # that it skips as many batches before its next batch as it skipped before this batch.
        step = first - before[1] if before[0] == split and first > before[1] else size
        starts = range(first, end, step)[: AHEAD + 1]
        keys = [(split, start, min(start + size, end)) for start in starts]
        with self._evaluating.images(keys) as images:
            yield self._on_device(images, self._splits[split].labels[first:last])

    def _on_device(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Images:
        tensors: tuple[Tensor, Tensor] = torch.from_numpy(images), torch.from_numpy(labels)
        return to_device(tensors[0], self.device), to_device(tensors[1], self.device)

    def _chosen(self, epoch: int, batch: int) -> NDArray[np.intp]:
        first = batch * self.batch_size
        return self._order.of(epoch)[first : first + self.batch_size].numpy()

    def _begin_training(self, key: tuple[int, int]) -> Loading:
        split = self._splits["train"]
        wanted = [Wanted(split.paths[number], self._middle) for number in self._chosen(*key)]
        if self._scale is not None:
            generator = generator_of(seeding.crop(self.seed, *key))
            shape = (len(wanted), TRIES, 4)
            draws = torch.rand(shape, generator=generator, dtype=torch.float64).tolist()
            wanted = [
                replace(each, scale=self._scale, draws=tuple(map(tuple, own)))
                for each, own in zip(wanted, draws, strict=True)
            ]
        return self._loaders.begin(wanted)

    def _begin_evaluation(self, key: tuple[str, int, int]) -> Loading:
        split, first, last = key
        paths = self._splits[split].paths[first:last]
        return self._loaders.begin([Wanted(path, self._middle) for path in paths])
