"""Defines the interface of tasks, and parts that tasks share."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.metric_lines import LINE_KEYS, is_number
from ppll_cli.leaves.names import class_path
from ppll_cli.leaves.values import ValueSpec

Shape = tuple[int, ...]
"""Shape of features, without the batch dimension."""


class Task(Protocol):
    """Targets, loss, metric and heads of a task.

    A task may also have these attributes and methods:

    `lower_is_better` is True if a lower metric is better, as for a perplexity.

    `reference` is the name of an untrained method, such as `bicubic`, with which the model is
    compared. The last line that a run prints then has the value `{reference}_{metric}`, such as
    `bicubic_psnr`, if `score` returns it.

    `details(rows, names)` returns the `ppll_cli.tasks.details.Details` of an evaluation. `names`
    are the names of classes, or of the pictures' files. `rows` are the results for all batches of
    `measure` or, if the task has a method `detail(prediction, values)`, of `detail`.

    Attributes:
        metric: Name of the metric, one of the names that `score` returns. Some names, such as
            `loss`, have another meaning in `metrics.jsonl`, and are refused.
        targets: Shape (without the batch dimension) and dtype of each tensor that losses read, by
            name. A tensor that the model reads may be among them.
    """

    @property
    def metric(self) -> str: ...  # noqa: D102

    @property
    def targets(self) -> Mapping[str, ValueSpec]: ...  # noqa: D102

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the samples of a batch, a scalar.

        It is also called with tensors on the meta device, which have no values. So no tensor's
        shape may depend on values in tensors.
        """

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """Return the measurements of a batch for `score`, float64 [n, columns]; n may be 0.

        In training this is called in every step, so expensive measurements may be left out.
        """

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """Return the scores by name, the metric first. Scores that were not measured are left out.

        The rows of all batches are float64 [n, columns], on the CPU.
        """

    def smallest_head(self, shape: Shape) -> nn.Module:
        """Return the smallest network that makes a prediction from features of this shape."""


def measured(
    task: Task, prediction: Tensor, values: Mapping[str, Tensor], training: bool
) -> Tensor:
    """Return the measurements of a batch, float64 [n, columns].

    Raises:
        TypeError: The task's `measure` returned something else.
    """
    rows = task.measure(prediction, values, training)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        found = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(
            f"{_name(task)}.measure() returned {found} instead of a tensor [n, columns]"
        )
    return rows.double()


def scored(task: Task, rows: Tensor, metric_required: bool) -> dict[str, float]:
    """Return the scores by name, given the measurements of all batches, on the CPU.

    In evaluation `metric_required` is True: the scores must contain the metric.

    Raises:
        TypeError: The task's `score` returned something else.
    """
    scores = task.score(rows)
    problem = ""
    if not isinstance(scores, Mapping):
        problem = f"returned {type(scores).__name__} instead of a mapping of names to numbers"
    elif names := [name for name in scores if not isinstance(name, str)]:
        problem = f"returned {type(names[0]).__name__} as the name of a score instead of a text"
    elif wrong := [name for name, value in scores.items() if not is_number(value)]:
        kind = type(scores[wrong[0]]).__name__
        problem = f"returned {kind} for {wrong[0]!r} instead of an int or a float"
    elif taken := LINE_KEYS & scores.keys():
        problem = f"returned {min(taken)!r}, a name with another meaning in metrics.jsonl"
    elif metric_required and task.metric not in scores:
        problem = f"returned {', '.join(scores) or 'nothing'}, but the metric is {task.metric!r}"
    if problem:
        raise TypeError(f"{_name(task)}.score() {problem}")
    return dict(scores)


def lower_is_better(task: Task) -> bool:
    """Return whether a lower value of the task's metric is better."""
    return getattr(task, "lower_is_better", False) is True


def _name(task: Task) -> str:
    return class_path(type(task))


AnyTask = TypeVar("AnyTask")


def only_for(kind: type[AnyTask], task: Task, key: str, name: str, use: str, data: str) -> AnyTask:
    """Return the task if it is a `kind`; otherwise refuse the setting `key=name`.

    In the error message, `use` follows "is for", and `data` follows "choose a data set".
    """
    if not isinstance(task, kind):
        raise ConfigError(key, name, f"is for {use}", f"choose a data set {data}")
    return task
