"""Makes the batches of a run: sample order, and batches of labelled images.

Batch b of epoch e depends only on (seed, e, b). Legend: B batch, C channels, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.data.augment import normalise, per_channel, random_crop, random_flip
from ppll_cli.data.classified import Classified
from ppll_cli.data.files import Files
from ppll_cli.data.mixing import mixed, unmixed
from ppll_cli.data.randaugment import rand_augment
from ppll_cli.data.source import BatchMaker, Dataset
from ppll_cli.data.staging import CPU, SideStream, to_device
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.random_states import generators_of, noticed_draws, seeded
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.classification import LABEL


def steps_per_epoch(samples: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches of an epoch; `drop_last` leaves out a shorter last batch.

    Raises:
        ConfigError: `drop_last` is true, and there are fewer than `batch_size` samples.
    """
    if drop_last and samples < batch_size:
        raise ConfigError(
            "data.drop_last",
            "true",
            f"leaves no batch: there are {samples} training samples and batch_size={batch_size}",
            f"give data.drop_last=false or batch_size={samples} at most",
        )
    return samples // batch_size if drop_last else -(-samples // batch_size)


def generator_of(seed: int) -> torch.Generator:
    """Return a generator on the CPU with this seed."""
    return torch.Generator().manual_seed(seed)


Data = TypeVar("Data", bound=Files)
Content = TypeVar("Content", bound=Sized)


@dataclass(eq=False, repr=False)
class SplitBatches(Generic[Data, Content]):
    """Makes batches from the splits of a data set. Subclasses define what is in a batch.

    Args:
        dataset: The settings of the data set.
        splits: The result of the data set's `load`.
        batch_size: Number of samples of a training batch.
        seed: The run's seed.
        device: The device of the batches.

    Raises:
        ConfigError: An epoch has no batch (see `steps_per_epoch`).
    """

    dataset: Data
    splits: Mapping[str, Content]
    batch_size: int
    seed: int
    device: torch.device

    _order_device = CPU  # device that keeps the order of the samples

    def __post_init__(self) -> None:
        samples = len(self.splits["train"])
        self.steps_per_epoch = steps_per_epoch(samples, self.batch_size, self.dataset.drop_last)
        self._latest: tuple[int, Tensor] | None = None  # latest argument and result of `order`

    def order(self, epoch: int) -> Tensor:
        """Return the indices of all N training samples in the order of an epoch, int64 [N]."""
        if self._latest is None or self._latest[0] != epoch:
            # Global generators are seeded anew for each batch, but the order is the same in all
            # batches of an epoch. So it needs a generator of its own.
            generator = generator_of(seeding.sample_order(self.seed, epoch))
            order = torch.randperm(len(self.splits["train"]), generator=generator)
            self._latest = epoch, to_device(order, self._order_device)
        return self._latest[1]

    def chosen(self, epoch: int, batch: int) -> Tensor:
        """Return the indices of the samples of a training batch, int64 [B]."""
        first = batch * self.batch_size
        return self.order(epoch)[first : first + self.batch_size]


Images = tuple[Tensor, Tensor]
"""The images uint8 [B, C, H, W] and the labels int64 [B] of a batch, on the worker's device."""


@dataclass(frozen=True)
class Split:
    """The images and labels of a split of a data set, such as `train`."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)


def augmented(images: Tensor, dataset: Classified, generator: torch.Generator) -> Tensor:
    """Augment a batch of images, uint8 [B, C, H, W], as the settings of `dataset` say."""
    if dataset.augment == "none":
        return images
    if dataset.pad:
        images = random_crop(images, dataset.pad, dataset.pad_mode, generator)
    if dataset.flip:
        images = random_flip(images, generator)
    return rand_augment(images, generator) if dataset.augment == "randaugment" else images


class ImageBatches(SplitBatches[Classified, Content], ABC):
    """Makes batches of labelled images. A subclass provides the images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._mean = per_channel(self.dataset.mean, self.device)
        self._std = per_channel(self.dataset.std, self.device)

    @abstractmethod
    def training_images(self, epoch: int, batch: int) -> Images:
        """Return the images and labels of a training batch, before `data.augment` is applied."""

    @abstractmethod
    def evaluation_images(self, split: str, first: int, last: int) -> Images:
        """Return the images and labels of the samples `first` to `last` - 1 of a split."""

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        """Make a training batch, augmented and mixed.

        Returns:
            Images float32 [B, C, H, W] and labels int64 [B], by name. If the data set mixes images,
            the labels are replaced by the targets that `ppll_cli.data.mixing.targets` returns.

        Raises:
            TypeError: The images of `training_images` are not uint8.
        """
        assert 0 <= batch < self.steps_per_epoch
        data, generator = self.dataset, generator_of(seeding.augmentation(self.seed, epoch, batch))
        images, labels = self.training_images(epoch, batch)
        named = self._named(augmented(images, data, generator), labels)
        if not data.mixed:
            return named
        generator = generator_of(seeding.mixing(self.seed, epoch, batch))
        return mixed(named, generator, mixup=data.mixup, cutmix=data.cutmix)

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        """Make batch number `batch` of a split: up to `size` samples, without augmentation.

        Names and dtypes of the tensors are those of a training batch. No image is mixed.

        Raises:
            TypeError: The images of `evaluation_images` are not uint8.
        """
        first, samples = batch * size, len(self.splits[split])
        assert 0 <= first < samples
        named = self._named(*self.evaluation_images(split, first, min(first + size, samples)))
        return unmixed(named) if self.dataset.mixed else named

    def _named(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if images.dtype != torch.uint8:
            name = type(self).__name__
            raise TypeError(f"{name} made {images.dtype} images, but normalisation needs uint8")
        return {IMAGE: normalise(images, self._mean, self._std), LABEL: labels}


class Batches(ImageBatches[Split]):
    """Makes batches from splits whose images are kept on the device as uint8."""

    in_advance = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._order_device = self.device
        self.splits = {
            name: Split(split.images.to(self.device), split.labels.to(self.device))
            for name, split in self.splits.items()
        }

    def training_images(self, epoch: int, batch: int) -> Images:  # noqa: D102
        chosen, split = self.chosen(epoch, batch), self.splits["train"]
        return split.images.index_select(0, chosen), split.labels.index_select(0, chosen)

    def evaluation_images(self, split: str, first: int, last: int) -> Images:  # noqa: D102
        whole = self.splits[split]
        return whole.images[first:last], whole.labels[first:last]


def split_data(dataset: Dataset) -> Any:
    """Load the splits of a data set, with seeded global generators. See `Dataset.load`."""
    with seeded(seeding.loading()):
        return dataset.load()


def batch_maker(
    dataset: Dataset, splits: Any, batch_size: int, seed: int, device: torch.device
) -> BatchMaker:
    """Call `dataset.batches`, with seeded global generators. See `Dataset.batches`."""
    with seeded(seeding.loading(), device):
        return dataset.batches(splits, batch_size, seed, device)


def evaluation_batch(
    maker: BatchMaker, split: str, batch: int, size: int, device: torch.device
) -> dict[str, Tensor]:
    """Make an evaluation batch, with seeded global generators. See `BatchMaker.evaluation`."""
    with seeded(seeding.evaluation_batch(split, batch), device):
        return maker.evaluation(split, batch, size)


Made = tuple[dict[str, Tensor], torch.cuda.Event | None]
"""A batch, and the result of `SideStream.mark`, which was called after the batch was made."""


class Ahead:
    """Makes training batches in a thread, if possible in advance while the worker trains.

    A batch is made in advance only if the class of `batches` has `in_advance = True`, which is
    explained in `BatchMaker.train`. Otherwise the caller waits while a batch is made.

    Args:
        batches: Makes the batches.
        threads: Largest number of CPU threads that torch uses to make a training batch.
        seed: The run's seed.
        device: The device for which `batches` makes batches.
    """

    def __init__(
        self, batches: BatchMaker, threads: int, seed: int, device: torch.device = CPU
    ) -> None:
        self._batches, self._seed, self._device = batches, seed, device
        self._side = SideStream(device)
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="batches", initializer=self._begin, initargs=(threads,)
        )
        # `in_advance` is not inherited: a subclass may draw from a global generator.
        self._in_advance = bool(vars(type(batches)).get("in_advance"))
        self._checked = False
        self._next: tuple[tuple[int, int], Future[Made]] | None = None

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        """Make an evaluation batch in the caller's thread."""
        return evaluation_batch(self._batches, split, batch, size, self._device)

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        """Return a training batch, and start to make the next one if it can be made in advance.

        If making the batch failed in the thread, raise the thread's exception here. This is a
        TypeError if the class has `in_advance = True`, but draws from a global generator.
        """
        if self._next is None or self._next[0] != (epoch, batch):
            self._start(epoch, batch)
        assert self._next is not None
        tensors, made = self._next[1].result()
        self._side.hand_over(tensors, made)
        self._next = None
        # Other batches draw from global generators, and networks would draw from them meanwhile.
        if self._in_advance:
            last = batch + 1 == self._batches.steps_per_epoch
            self._start(*((epoch + 1, 0) if last else (epoch, batch + 1)))
        return tensors

    def _start(self, epoch: int, batch: int) -> None:
        self._next = (epoch, batch), self._thread.submit(self._make, epoch, batch)

    def _begin(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._side.enter()

    def _make(self, epoch: int, batch: int) -> Made:
        with self._making(epoch, batch):
            tensors = self._batches.train(epoch, batch)
        return tensors, self._side.mark()

    def _making(self, epoch: int, batch: int) -> AbstractContextManager[None]:
        if not self._in_advance:
            return seeded(seeding.training_batch(self._seed, epoch, batch), self._device)
        return nullcontext() if self._checked else self._without_global_draws()

    @contextmanager
    def _without_global_draws(self) -> Iterator[None]:
        # The caller waits for the first batch, so no network draws random numbers meanwhile.
        with noticed_draws(generators_of(self._device)) as drawn:
            yield
        if drawn:
            raise TypeError(
                f"{type(self._batches).__name__} has in_advance=True, but its train() draws random "
                f"numbers from the global generator of {' and '.join(drawn)}: remove in_advance, "
                "or draw from generator_of(seeding.augmentation(seed, epoch, batch))"
            )
        self._checked = True
