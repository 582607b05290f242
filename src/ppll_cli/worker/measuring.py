"""Measures the loss and the metrics of a chunk on evaluation batches."""

import torch

from ppll_cli.tasks.task import measured
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.sums import Sums, split_of


def measure(chunk: HeldChunk, micro_batch: int, split: str) -> None:
    """Add the loss and metrics of an evaluation micro-batch to `chunk.sums`, and free its tensors.

    With averaged weights only the last module is measured: auxiliary networks have no averages.
    """
    held, criterion = chunk.tensors[micro_batch], chunk.criterion
    values, held.values = held.values, {}
    if criterion is None or (chunk.averaged and not chunk.is_last):
        return
    with chunk.autocast(), torch.no_grad():
        loss, prediction = criterion(values)
        predictions = {"": prediction, **criterion.predict_further(values)}
        for name, found in predictions.items():
            measures = measured(chunk.job.task, found, values, training=False)
            sums = chunk.sums.setdefault(split_of(split, name), Sums())
            sums.add(loss, chunk.batch.sizes[micro_batch], measures)
