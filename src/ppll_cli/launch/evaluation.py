"""Evaluates the model of a finished run, on its own data or on other data for the same task."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppll_cli.data.batches import batch_maker, evaluation_batch
from ppll_cli.errors import ConfigError
from ppll_cli.job.schedule import schedule_of
from ppll_cli.launch.loaded import OURS, LoadedRun
from ppll_cli.observe.runs import SUMMARY_FILE, finite, object_in, whole
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.prepare.course import evaluated_together, largest_micro_batch
from ppll_cli.tasks.details import Details, detailed
from ppll_cli.tasks.task import measured, scored
from ppll_cli.worker.sums import Sums


@dataclass(frozen=True)
class Evaluated:
    """The results of evaluating the model on a split.

    Attributes:
        samples: Number of samples of the split.
        result: Loss, metric and other scores of the task, by their names in `summary.json`. None
            stands for a value that is infinite or NaN.
        details: Results of each class or each picture; None if the task gives none.
    """

    split: str
    samples: int
    result: dict[str, float | None]
    details: Details | None


def evaluate(run: LoadedRun, split: str, batch_size: int | None = None) -> Evaluated:
    """Evaluate the model of a run on a split.

    `batch_size` is the number of samples per batch; None for the same batches as in the run's own
    evaluations. The largest number of samples that the data set allows is not exceeded.

    Raises:
        ConfigError: The data set has no such split.
    """
    splits, dataset = run.data.splits, run.data.dataset
    if split not in splits:
        remedy = f"there are {', '.join(splits)}"
        if split == "val":  # a split made now would contain samples that were trained on
            remedy += "; val needs data.val_fraction at the start of the run, or pictures in val/"
        raise ConfigError("--split", split, "the data set has no such split", remedy)
    as_evaluated = getattr(dataset, "evaluated", None)
    if as_evaluated is not None:
        splits = as_evaluated(splits, split)
    config = run.settings.schedule
    ours = str(config.get("_target_")).startswith(OURS)
    schedule = schedule_of(config) if ours else None  # a user's class is not imported here
    size = _size(run, schedule, batch_size)
    maker = batch_maker(dataset, splits, run.settings.batch_size, run.settings.seed, run.device)
    samples, task, replicas = len(splits[split]), run.task, run.settings.replicas
    sums = [Sums() for _ in range(replicas)]  # as in the run: one sum for each replica's batches
    rows: list[Tensor] = []
    detail = getattr(task, "detail", None)
    together = 1 if schedule is None else evaluated_together(run.settings, schedule)
    with ExitStack() as held:
        held.enter_context(run.numerics.applied(run.device))
        held.callback(torch.set_num_threads, torch.get_num_threads())
        # The last bits of the results depend on the number of threads.
        torch.set_num_threads(run.settings.threads_per_worker)
        for number, first in enumerate(range(0, samples, size)):
            values = evaluation_batch(maker, split, number, size, run.device)
            inputs = {name: values[name] for name in run.data.input_spec.specs}
            prediction = run.apply(inputs, number)
            with torch.no_grad(), run.numerics.autocast(run.device):
                loss = task.loss(prediction, values)
                measures = measured(task, prediction, values, training=False)
                if detail is not None:
                    rows.append(detail(prediction, values))
            sums[number // together % replicas].add(loss, min(size, samples - first), measures)
    loss_sum = sum(float(each.loss) for each in sums)
    every = torch.cat([each for one in sums for each in one.measures]).cpu()
    scores = {
        name: finite(value) for name, value in scored(task, every, metric_required=True).items()
    }
    result = {"loss": finite(loss_sum / samples), **scores}
    detailed = torch.cat(rows).cpu() if rows else every
    return Evaluated(split, samples, result, _details(run, split, detailed))


def _size(run: LoadedRun, schedule: Schedule | None, batch_size: int | None) -> int:
    form = run.data.form
    if batch_size is not None:
        return batch_size if form is None else min(batch_size, form.samples)
    if form is not None:
        return form.samples
    settings = run.settings
    if schedule is None:
        return -(-settings.batch_size // (settings.replicas * _microbatches(run)))
    return largest_micro_batch(settings, schedule)


def _microbatches(run: LoadedRun) -> int:
    recorded = whole(object_in(run.run_dir / SUMMARY_FILE).get("microbatches"))
    return recorded or int(run.settings.schedule.get("microbatches") or 1)


def _details(run: LoadedRun, split: str, rows: Tensor) -> Details | None:
    task: Any = run.task
    if getattr(task, "details", None) is None:
        return None
    file_names = getattr(run.data.dataset, "file_names", None)
    names: Sequence[str] = run.classes if file_names is None else file_names(split)
    found = detailed(task, rows, names)
    entries = [
        {key: finite(value) if isinstance(value, float) else value for key, value in each.items()}
        for each in found.entries
    ]
    return replace(found, entries=entries)
