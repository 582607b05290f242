"""The batches of a run: which samples, in which order, augmented how.

Batch b of epoch e depends on (seed, e, b) alone. Legend: B batch, C channels, H height, W width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.data.augment import Augmentation, normalise, per_channel
from ppll_cli.data.mixing import Mixing
from ppll_cli.data.source import BatchMaker
from ppll_cli.data.staging import CPU, SideStream, to_device
from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.classification import LABEL


def steps_per_epoch(samples: int, batch_size: int, drop_last: bool) -> int:
    """How many training batches an epoch has.

    Raises:
        ConfigError: There would be none.
    """
    if drop_last and samples < batch_size:
        raise ConfigError(
            "data.drop_last",
            "true",
            f"leaves nothing: there are {samples} training samples and batch_size={batch_size}",
            f"give data.drop_last=false or batch_size={samples} at most",
        )
    return samples // batch_size if drop_last else _batches(samples, batch_size)


def _batches(samples: int, size: int) -> int:
    """Batches of at most `size` that hold all samples."""
    return -(-samples // size)


def generator_of(seed: int) -> torch.Generator:
    """On the CPU, where all is drawn."""
    return torch.Generator().manual_seed(seed)


class EpochOrder:
    """In which order the training samples come in an epoch; the latest epoch's is kept.

    Args:
        samples: N.
        seed: The run's seed.
        device: Where the order is read. It is drawn on the CPU and copied once an epoch.
    """

    def __init__(self, samples: int, seed: int, device: torch.device = CPU) -> None:
        self.samples, self.seed, self.device = samples, seed, device
        self._latest: tuple[int, Tensor] | None = None

    def of(self, epoch: int) -> Tensor:
        """Numbers of samples, int64 [N] on the device."""
        if self._latest is None or self._latest[0] != epoch:
            generator = generator_of(seeding.sample_order(self.seed, epoch))
            order = torch.randperm(self.samples, generator=generator)
            self._latest = epoch, to_device(order, self.device)
        return self._latest[1]


Images = tuple[Tensor, Tensor]
"""Images uint8 [B, C, H, W] and labels int64 [B]."""


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, H, W] and their labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a run's batches are made of images.

    Attributes:
        mean: Mean of the pixels in [0, 1], one value or one a channel.
        std: Standard deviation of the pixels in [0, 1], in the same form.
        augmentation: What is done to the images of a training batch.
        mixing: How these are mixed, after that and normalised.
        drop_last: Whether a shorter last batch is left out.
        batch_size: Samples of a training batch.
        seed: The run's.
        device: Where batches are made.
    """

    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation
    mixing: Mixing
    drop_last: bool
    batch_size: int
    seed: int
    device: torch.device


class ImageBatches(ABC):
    """Makes batches of labelled images. A subclass says where the images come from.

    Args:
        samples: How many each split has.
        form: How batches are made of them.
    """

    def __init__(self, samples: Mapping[str, int], form: Form) -> None:
        self.samples, self.form, self.device = samples, form, form.device
        self.steps_per_epoch = steps_per_epoch(samples["train"], form.batch_size, form.drop_last)
        self._mean = per_channel(form.mean, form.device)
        self._std = per_channel(form.std, form.device)

    @abstractmethod
    def training_images(self, epoch: int, batch: int) -> AbstractContextManager[Images]:
        """The images and labels of a training batch, on the device, not augmented.

        The images may be overwritten once the context has ended.
        """

    @abstractmethod
    def evaluation_images(
        self, split: str, first: int, last: int
    ) -> AbstractContextManager[Images]:
        """The images and labels of samples `first` to `last` - 1, on the device.

        The images may be overwritten once the context has ended.
        """

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        """One training batch, augmented and mixed.

        The last of an epoch is shorter where the samples do not divide, unless that is dropped.

        Returns:
            Images float32 [B, C, H, W] and labels int64 [B], by the names of a batch's tensors.
            Where batches are mixed, the other labels and the shares as well.
        """
        assert 0 <= batch < self.steps_per_epoch
        seed, mixing = self.form.seed, self.form.mixing
        generator = generator_of(seeding.augmentation(seed, epoch, batch))
        with self.training_images(epoch, batch) as (images, labels):
            named = self._named(self.form.augmentation(images, generator), labels)
        if not mixing.on:
            return named
        return mixing.mixed(named, generator_of(seeding.mixing(seed, epoch, batch)))

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        """Batch number `batch` of at most `size` samples, in order and as they are.

        Returns:
            The tensors of a training batch, by the same names; no image is mixed.
        """
        assert 0 <= batch < self.evaluation_batches(split, size)
        first = batch * size
        last = min(first + size, self.samples[split])
        with self.evaluation_images(split, first, last) as (images, labels):
            named = self._named(images, labels)
        return self.form.mixing.unmixed(named) if self.form.mixing.on else named

    def evaluation_batches(self, split: str, size: int) -> int:
        """How many batches of at most `size` samples a split has."""
        return _batches(self.samples[split], size)

    def _named(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {IMAGE: normalise(images, self._mean, self._std), LABEL: labels}


class Batches(ImageBatches):
    """Makes batches of splits, which it keeps on the device as bytes.

    Args:
        splits: What the data set loaded.
        form: How batches are made of them.
    """

    def __init__(self, splits: Mapping[str, Split], form: Form) -> None:
        super().__init__({name: len(split) for name, split in splits.items()}, form)
        self.splits = {
            name: Split(split.images.to(form.device), split.labels.to(form.device))
            for name, split in splits.items()
        }
        self._order = EpochOrder(len(splits["train"]), form.seed, form.device)

    def training_images(self, epoch: int, batch: int) -> AbstractContextManager[Images]:  # noqa: D102
        first = batch * self.form.batch_size
        chosen = self._order.of(epoch)[first : first + self.form.batch_size]
        split = self.splits["train"]
        return nullcontext(
            (split.images.index_select(0, chosen), split.labels.index_select(0, chosen))
        )

    def evaluation_images(  # noqa: D102
        self, split: str, first: int, last: int
    ) -> AbstractContextManager[Images]:
        whole = self.splits[split]
        return nullcontext((whole.images[first:last], whole.labels[first:last]))


Made = tuple[dict[str, Tensor], torch.cuda.Event | None]
"""A batch, and on CUDA the event behind the work that makes it."""


class Ahead:
    """Makes each training batch in a thread while the batch before it is trained.

    On CUDA the thread also has a stream of its own. Evaluation batches are made by the caller, on
    the caller's stream.

    Args:
        batches: Makes the batches.
        threads: CPU threads of the calling worker; torch would give a new thread all cores.
        device: Where `batches` makes them.
    """

    def __init__(self, batches: BatchMaker, threads: int, device: torch.device = CPU) -> None:
        self._batches, self.evaluation = batches, batches.evaluation
        self._side = SideStream(device)
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="batches", initializer=self._begin, initargs=(threads,)
        )
        self._next: tuple[tuple[int, int], Future[Made]] | None = None

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        """As `Batches.train`; quick if this batch follows the last one that was asked for.

        Raises what making the batch raised.
        """
        if self._next is None or self._next[0] != (epoch, batch):
            self._start(epoch, batch)
        assert self._next is not None
        tensors, made = self._next[1].result()
        self._side.hand_over(tensors, made)
        last = batch + 1 == self._batches.steps_per_epoch
        self._start(*((epoch + 1, 0) if last else (epoch, batch + 1)))
        return tensors

    def _start(self, epoch: int, batch: int) -> None:
        self._next = (epoch, batch), self._thread.submit(self._make, epoch, batch)

    def _begin(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._side.enter()

    def _make(self, epoch: int, batch: int) -> Made:
        return self._batches.train(epoch, batch), self._side.mark()
