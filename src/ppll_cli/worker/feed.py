"""Splits the batches of the data set into the micro-batches of a worker."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppll_cli.data.batches import Ahead
from ppll_cli.job.course import Batch, Course, EvaluationBatch, Item, TrainBatch


def micro_batches(
    batches: Ahead | None, course: Course, item: Item | None, batch: Batch
) -> Sequence[Mapping[str, Tensor]]:
    """Return the tensors of each micro-batch, by name.

    `item` names the batch, or the first of several evaluation batches. Each evaluation batch is
    treated as a micro-batch. `batch` is the share of this worker's replica.
    """
    assert batches is not None
    sizes = batch.sizes
    if isinstance(item, EvaluationBatch):
        size, numbers = course.evaluation_size, range(item.batch, item.batch + len(sizes))
        return [batches.evaluation(item.data_split, n, size) for n in numbers]
    assert isinstance(item, TrainBatch)
    whole = batches.train(item.epoch, item.batch)
    share = {n: each.narrow(0, batch.first_sample, sum(sizes)) for n, each in whole.items()}
    parts = {name: torch.split(tensor, list(sizes)) for name, tensor in share.items()}
    return [{name: each[m] for name, each in parts.items()} for m in range(len(sizes))]
