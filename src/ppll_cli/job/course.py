"""The sequence of items that flows through the pipeline. An item is a batch or a mark.

Stage 0 decides which item comes next. The other stages read it from the header of a message.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ppll_cli.observe.runs import SPLITS
from ppll_cli.pipeline.instructions import Checkpoint, End, Evaluate, Mark

AVERAGED = "_ema"
"""Suffix of a split's name if averaged weights are evaluated on it, as in `test_ema`."""


@dataclass(frozen=True)
class TrainBatch:
    """A training batch."""

    step: int  # number of optimizer steps done before the batch
    epoch: int  # from 0
    batch: int  # index of the batch within the epoch, from 0
    samples: int


@dataclass(frozen=True)
class EvaluationBatch:
    """One or more batches of a held-out split, which go through the pipeline together."""

    split: str  # "val" or "test"; "val_ema" or "test_ema" for averaged weights
    batch: int  # index of the first batch within the split, from 0
    samples: int  # number of samples in all batches of this item

    @property
    def averaged(self) -> bool:
        """Whether averaged weights are evaluated."""
        return self.split.endswith(AVERAGED)

    @property
    def data_split(self) -> str:
        """Name of the split in the data set: `split` without "_ema"."""
        return self.split.removesuffix(AVERAGED)


@dataclass(frozen=True)
class Version:
    """Tells how many optimizer steps trained the weights that a message contains.

    Some local losses read weights of later units. Messages with these weights have a `Version` in
    their header. All other messages have an `Item` there.
    """

    steps: int  # 0 or less for the initial weights


Item = TrainBatch | EvaluationBatch | Mark


@dataclass(frozen=True)
class Batch:
    """A worker's share of the current batch, split into micro-batches."""

    sizes: Sequence[int]  # number of samples of each micro-batch of the share
    training: bool = False  # False for a batch of an evaluation
    step: int = -1  # number of optimizer steps done before a training batch; -1 in evaluation
    samples: int = 0  # number of samples of a training batch, over all replicas
    # Index of the share's first micro-batch. In training, the index counts all micro-batches of
    # the batch. In evaluation, each micro-batch is a batch of the split, and the index counts the
    # batches of the split.
    first_micro_batch: int = 0
    first_sample: int = 0  # number of samples in the shares of the replicas with lower numbers
    averaged: bool = False  # whether averaged weights are evaluated

    def share(self, micro_batch: int) -> float:
        """Return a micro-batch's weight in the mean loss of the whole training batch.

        It is the fraction of the batch's samples that are in the micro-batch. `micro_batch` is an
        index in `sizes`.
        """
        return self.sizes[micro_batch] / self.samples


@dataclass(frozen=True)
class Course:
    """The planned sequence of a run's batches, evaluations and checkpoints.

    The plan always ends with an evaluation and a checkpoint.
    """

    samples: Mapping[str, int]  # number of samples of each split
    batch_size: int  # samples per training batch; the last batch of an epoch may have fewer
    drop_last: bool  # whether a last training batch with fewer samples is left out
    evaluation_size: int  # samples per evaluation batch; the last batch of a split may have fewer
    epochs: int  # number of epochs; the learning rate's schedule ends with the last epoch
    max_steps: int | None  # the run ends after this many optimizer steps; None for no limit
    eval_every: int  # epochs between evaluations
    checkpoint_every: int | None  # steps between checkpoints; None for one after each epoch
    checkpoint_best: bool = False  # whether each evaluation is also followed by a checkpoint
    evaluation_batches: int = 1  # largest number of batches in an `EvaluationBatch`
    averages: bool = False  # whether averaged weights are evaluated after the weights themselves
    log_every: int = 10  # steps between training reports; each epoch also ends with a report

    @property
    def evaluated(self) -> list[str]:
        """Names of the splits to evaluate, in order; `test_ema` is `test` with averaged weights."""
        found = [split for split in SPLITS if split in self.samples]
        return found + [split + AVERAGED for split in found if self.averages]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Number of training batches of an epoch."""
        return len(self.batch_sizes())

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def segment(self) -> int:
        """How many training batches usually follow one another without evaluation or checkpoint."""
        return min(self.steps_per_epoch, self.checkpoint_every or self.steps_per_epoch)

    def batch_sizes(self) -> list[int]:
        """Return the number of samples of each training batch of an epoch."""
        return _sizes(self.samples["train"], self.batch_size, self.drop_last)

    def samples_until(self, step: int) -> int:
        """Return the number of samples of the first `step` training batches of the run."""
        sizes = self.batch_sizes()
        epochs, rest = divmod(step, len(sizes))
        return epochs * sum(sizes) + sum(sizes[:rest])

    def items(self, stop: Callable[[], bool], start: int = 0) -> Iterator[Item]:
        """Yield all batches and marks in order, up to the mark `End`.

        Args:
            stop: Called before each training batch. If it returns True, the run ends early, after
                a `Checkpoint` of the latest step.
            start: Number of optimizer steps that an earlier process has done.
        """
        sizes = self.batch_sizes()
        step = start
        saved = None
        if step >= self.steps:  # Earlier processes did all steps, so the run is only evaluated.
            yield from self._evaluation(step, self.epoch_of(step))
        while step < self.steps and not stop():
            epoch, batch = divmod(step, len(sizes))
            yield TrainBatch(step, epoch, batch, sizes[batch])
            step += 1
            epoch_ends = batch + 1 == len(sizes)
            ends = step == self.steps
            evaluated = self.evaluates_after(step)
            if evaluated:
                yield from self._evaluation(step, epoch + 1)
            due = epoch_ends if self.checkpoint_every is None else step % self.checkpoint_every == 0
            if (due or (evaluated and self.checkpoint_best)) and not ends:
                yield Checkpoint(step, epoch + 1)
                saved = step
        if saved != step:
            yield Checkpoint(step, self.epoch_of(step))
        yield End(step)

    def evaluates_after(self, step: int) -> bool:
        """Return whether an evaluation follows after `step` optimizer steps."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return step == self.steps or (rest == 0 and epochs % self.eval_every == 0)

    def logs_after(self, step: int) -> bool:
        """Return whether the stages write a training report when `step` steps are done."""
        return step % self.log_every == 0 or step % self.steps_per_epoch == 0

    def epoch_of(self, step: int) -> int:
        """Return the epoch of the `step`-th optimizer step. The first epoch is 1; step 0 has 0."""
        return (step - 1) // self.steps_per_epoch + 1

    def evaluation_counts(self) -> set[int]:
        """Return every possible number of batches in an `EvaluationBatch` of this run."""
        found = {1}
        for split in SPLITS:
            batches = -(-self.samples.get(split, 0) // self.evaluation_size)
            found |= {min(batches, self.evaluation_batches), batches % self.evaluation_batches}
        return found - {0}

    def evaluation_sizes(self, item: EvaluationBatch) -> list[int]:
        """Return the number of samples of each batch in an `EvaluationBatch`."""
        return _sizes(item.samples, self.evaluation_size, drop_last=False)

    def _evaluation(self, step: int, epoch: int) -> Iterator[Item]:
        for split in self.evaluated:
            samples = self.samples[split.removesuffix(AVERAGED)]
            sizes = _sizes(samples, self.evaluation_size, drop_last=False)
            for first in range(0, len(sizes), self.evaluation_batches):
                together = sizes[first : first + self.evaluation_batches]
                yield EvaluationBatch(split, first, sum(together))
            yield Evaluate(split, step, epoch)


def _sizes(samples: int, size: int, drop_last: bool) -> list[int]:
    full, rest = divmod(samples, size)
    return [size] * full + ([rest] if rest and not drop_last else [])


def split_batch(samples: int, microbatches: int) -> list[int]:
    """Return the sizes of a batch's micro-batches: nearly equal, none empty, the larger ones first.

    For example, 10 samples in 4 micro-batches are 3, 3, 2 and 2. If the batch has fewer samples
    than `microbatches`, each sample is a micro-batch.
    """
    parts = min(samples, microbatches)
    size, extra = divmod(samples, parts)
    return [size + (part < extra) for part in range(parts)]


def split_share(samples: int, microbatches: int, replicas: int, replica: int) -> list[int]:
    """Return the sizes of the micro-batches of one replica's share of a batch.

    The replicas' shares are nearly equal; the first replicas have the larger ones. The batch must
    have at least one sample per replica.
    """
    return split_batch(split_batch(samples, replicas)[replica], microbatches)
