"""Splits the batches of the data set into the micro-batches of a worker."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppll_cli.data.batches import Ahead
from ppll_cli.job.course import Batch, EvaluationBatch, Item, TrainBatch
from ppll_cli.job.job import Job
from ppll_cli.leaves.values import ValueSpec


def micro_batches(
    batches: Ahead | None, job: Job, item: Item | None, batch: Batch
) -> Sequence[Mapping[str, Tensor]]:
    """Load a worker's share of a batch, and return the tensors of each micro-batch by name.

    Args:
        batches: Makes the batches of the data set.
        job: What the run computes.
        item: A `TrainBatch`, which is split into micro-batches; or an `EvaluationBatch`, which has
            one or more batches of the data set, each of them a micro-batch.
        batch: The worker's share of `item`, with the sizes of the micro-batches.

    Raises:
        TypeError: A batch of the data set lacks tensors that the run needs, or they do not fit.
        RunFailedError: A data loader has ended, or cannot read a sample.
    """
    assert batches is not None
    sizes = batch.sizes
    if isinstance(item, EvaluationBatch):
        specs = (job.evaluation_specs or job.specs)[0]
        size = job.course.evaluation_size
        found = []
        for number, samples in enumerate(sizes, item.batch):
            made = batches.evaluation(item.data_split, number, size)
            found.append(checked_batch(made, specs, samples, "evaluation()"))
        return found
    assert isinstance(item, TrainBatch)
    made = batches.train(item.epoch, item.batch)
    whole = checked_batch(made, job.specs[0], item.samples, "train()")
    share = {n: each.narrow(0, batch.first_sample, sum(sizes)) for n, each in whole.items()}
    parts = {name: torch.split(tensor, list(sizes)) for name, tensor in share.items()}
    return [{name: each[m] for name, each in parts.items()} for m in range(len(sizes))]


def checked_batch(
    made: object, specs: Mapping[str, ValueSpec], samples: int, method: str
) -> Mapping[str, Tensor]:
    """Check that a batch has the tensors that `specs` lists, and return these tensors by name.

    Args:
        made: The batch that the data set made.
        specs: Dtype, and largest shape without the batch dimension, of each tensor by name.
        samples: Number of samples that the batch must have.
        method: Name of the data set's method that made the batch, for the error.

    Raises:
        TypeError: The batch is no mapping, or a tensor is missing or does not fit.
    """
    if not isinstance(made, Mapping):
        kind = type(made).__name__
        raise TypeError(f"the data set's {method} returned {kind} instead of tensors by name")
    for name, spec in specs.items():
        if name not in made:
            has = ", ".join(map(str, made)) or "nothing"
            raise TypeError(f"the data set's {method} returned no {name!r}, only {has}")
        tensor = made[name]
        if not isinstance(tensor, Tensor):
            found = type(tensor).__name__
        elif _fits(tensor, spec, samples):
            continue
        else:
            found = f"{_unusable(tensor)}{tensor.dtype} {list(tensor.shape)}"
        wanted = f"{spec.dtype} {[samples, *spec.shape]}"
        raise TypeError(f"the data set's {method} returned {name!r} as {found} instead of {wanted}")
    return {name: made[name] for name in specs}


def _fits(tensor: Tensor, spec: ValueSpec, samples: int) -> bool:
    count, *shape = tensor.shape or (0,)
    return (
        not _unusable(tensor)
        and tensor.dtype == spec.dtype
        and count == samples
        and len(shape) == len(spec.shape)
        and all(size <= largest for size, largest in zip(shape, spec.shape, strict=True))
    )


def _unusable(tensor: Tensor) -> str:
    if tensor.layout != torch.strided:
        return f"{tensor.layout} "
    return "inference_mode() " if tensor.is_inference() else ""
