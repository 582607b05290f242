"""What flows through the pipeline: batches, and marks behind them.

Stage 0 decides what comes next; the others learn it from the header of the next message.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ppll_cli.pipeline.instructions import Checkpoint, End, Evaluate, Mark

SPLITS = ("val", "test")
"""What is evaluated, in this order, if the data set has it."""

AVERAGED = "_ema"
"""How the name of a split ends where averaged weights are evaluated on it, as in `test_ema`."""


@dataclass(frozen=True)
class TrainBatch:
    """A training batch.

    Attributes:
        step: Optimizer steps before it.
        epoch: Its epoch, counted from 0.
        batch: Its number within the epoch, from 0.
        samples: How many samples it has.
    """

    step: int
    epoch: int
    batch: int
    samples: int


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch of a held-out split, or several that go through the pipeline together.

    Attributes:
        split: The split; where averaged weights are evaluated, with `AVERAGED` behind its name.
        batch: The number of the first batch within the split, from 0.
        samples: How many samples there are.
    """

    split: str
    batch: int
    samples: int

    @property
    def averaged(self) -> bool:
        """Whether averaged weights are evaluated."""
        return self.split.endswith(AVERAGED)

    @property
    def data_split(self) -> str:
        """The split of the data set."""
        return self.split.removesuffix(AVERAGED)


@dataclass(frozen=True)
class Version:
    """Weights of a unit that an earlier module watches; no item, but what a message is for.

    Attributes:
        steps: How many optimizer steps they have; below 0 the initial weights stand in.
    """

    steps: int

    @classmethod
    def read_by(cls, step: int, lag: int) -> "Version":
        """The version that the training batch after so many optimizer steps reads."""
        return cls(step - lag + 1)


Item = TrainBatch | EvaluationBatch | Mark


@dataclass(frozen=True)
class Batch:
    """The batch in hand.

    Attributes:
        sizes: Samples of each micro-batch.
        training: Else it is for evaluation.
        step: Optimizer steps before a training batch.
        samples: Of the whole batch, of which replicas have a share each.
        first_micro_batch: How many micro-batches the replicas before this one have.
        averaged: Averaged weights are evaluated.
    """

    sizes: Sequence[int]
    training: bool = False
    step: int = 0
    samples: int = 0
    first_micro_batch: int = 0
    averaged: bool = False

    def share(self, micro_batch: int) -> float:
        """How much of the batch's loss and gradients is a micro-batch's."""
        return self.sizes[micro_batch] / self.samples


@dataclass(frozen=True)
class Course:
    """How a run goes, as far as that is known before it starts.

    Attributes:
        samples: How many samples each split has.
        batch_size: Of training batches; the last of an epoch may be shorter.
        drop_last: Leave a shorter last batch out.
        evaluation_size: Of evaluation batches; the last one of a split may be shorter.
        epochs: The horizon, also of the learning rate.
        max_steps: Stop after this many optimizer steps, if the horizon is not reached before.
        eval_every: Epochs between evaluations; the end is always evaluated.
        checkpoint_every: Optimizer steps between checkpoints; null: each epoch. The end always
            has one.
        checkpoint_best: Have one after each evaluation as well.
        evaluation_batches: How many evaluation batches go through the pipeline together.
        averages: Averaged weights are evaluated as well, after the weights themselves.
        log_every: Optimizer steps from one report of training to the next; an epoch ends with one.
    """

    samples: Mapping[str, int]
    batch_size: int
    drop_last: bool
    evaluation_size: int
    epochs: int
    max_steps: int | None
    eval_every: int
    checkpoint_every: int | None
    checkpoint_best: bool = False
    evaluation_batches: int = 1
    averages: bool = False
    log_every: int = 10

    @property
    def evaluated(self) -> list[str]:
        """Names of what is evaluated, in order."""
        found = [split for split in SPLITS if split in self.samples]
        return found + [split + AVERAGED for split in found if self.averages]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch."""
        return len(self.batch_sizes())

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def segment(self) -> int:
        """Training batches between two interruptions, evaluation or checkpoint, at the least."""
        return min(self.steps_per_epoch, self.checkpoint_every or self.steps_per_epoch)

    def batch_sizes(self) -> list[int]:
        """Sizes of the training batches of an epoch."""
        return _sizes(self.samples["train"], self.batch_size, self.drop_last)

    def samples_until(self, step: int) -> int:
        """Samples of the first training batches of a run, so many as there are steps."""
        sizes = self.batch_sizes()
        epochs, rest = divmod(step, len(sizes))
        return epochs * sum(sizes) + sum(sizes[:rest])

    def items(self, stop: Callable[[], bool], start: int = 0) -> Iterator[Item]:
        """Everything that flows, in order.

        Args:
            stop: Asked before each batch; once it says yes, a checkpoint and the end follow.
            start: Optimizer steps that were done before.
        """
        sizes = self.batch_sizes()
        step = start
        saved = None
        if step >= self.steps:  # it did them all before, or more, and is evaluated where it is
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
        """Whether an evaluation follows so many optimizer steps, whatever else happens."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return step == self.steps or (rest == 0 and epochs % self.eval_every == 0)

    def logs_after(self, step: int) -> bool:
        """Whether training is reported after so many optimizer steps, wherever the run stops."""
        return step % self.log_every == 0 or step % self.steps_per_epoch == 0

    def epoch_of(self, step: int) -> int:
        """The epoch, counted from 1, of the last of so many optimizer steps."""
        return (step - 1) // self.steps_per_epoch + 1

    def evaluation_counts(self) -> set[int]:
        """How many batches an evaluation item may hold."""
        found = {1}
        for split in SPLITS:
            batches = -(-self.samples.get(split, 0) // self.evaluation_size)
            found |= {min(batches, self.evaluation_batches), batches % self.evaluation_batches}
        return found - {0}

    def evaluation_sizes(self, item: EvaluationBatch) -> list[int]:
        """Samples of each batch that an item holds."""
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
    """Sizes of the micro-batches of a batch: as even as possible, none empty, larger ones first."""
    parts = min(samples, microbatches)
    size, extra = divmod(samples, parts)
    return [size + (part < extra) for part in range(parts)]


def split_share(samples: int, microbatches: int, replicas: int, replica: int) -> list[int]:
    """Sizes of the micro-batches of a replica's share of a batch, shares being as even as can be.

    Args:
        samples: Of the batch, at least one for each replica.
        microbatches: How many a share is split into, at most.
        replicas: How many share the batch; the first ones have the larger shares.
        replica: The replica whose share is split, counted from 0.
    """
    return split_batch(split_batch(samples, replicas)[replica], microbatches)
