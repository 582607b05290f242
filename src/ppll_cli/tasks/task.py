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
    """What a model learns: targets, loss and metric, and the smallest network for a prediction.

    A task may also have these attributes and methods:

    `lower_is_better`: True if a lower metric is better, as for a perplexity.

    `reference`: The name of an untrained method, such as `bicubic`, with which the model is
    compared. If `score` returns `{reference}_{metric}`, such as `bicubic_psnr`, the last line that
    a run prints shows this value.

    `details(rows, names)`: Returns the results of each class or picture, as a
    `ppll_cli.tasks.details.Details`. `rows` has the rows that `measure` returned for all batches.
    `names` has the names of the pictures' files if the data set has a method `file_names`; if not,
    the names of the classes.

    `detail(prediction, values)`: Returns rows for a batch, which `details` gets instead of the rows
    of `measure`.

    Attributes:
        metric: Name of the metric, one of the names that `score` returns. Names that have another
            meaning in `metrics.jsonl`, such as `loss`, are refused.
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

        `rows` has the rows that `measure` returned for all batches: float64 [n, columns], on the
        CPU.
        """

    def smallest_head(self, shape: Shape) -> nn.Module:
        """Return the smallest network that makes a prediction from features of this shape."""


def measured(
    task: Task, prediction: Tensor, values: Mapping[str, Tensor], training: bool
) -> Tensor:
    """Call the task's `measure`, check its result, and return it as float64 [n, columns].

    Raises:
        TypeError: `measure` did not return a tensor with two dimensions.
    """
    rows = task.measure(prediction, values, training)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        found = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(
            f"{_name(task)}.measure() returned {found} instead of a tensor [n, columns]"
        )
    return rows.double()


def scored(task: Task, rows: Tensor, metric_required: bool) -> dict[str, float]:
    """Call the task's `score`, check its result, and return it: the scores by name.

    `rows` has the measurements of all batches, float64 [n, columns], on the CPU. If
    `metric_required`, as in an evaluation, the metric must be among the scores.

    Raises:
        TypeError: `score` did not return numbers by name, or a name is not allowed, or the required
            metric is missing.
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
    """Return the task if it is a `kind`; if not, raise a ConfigError about the setting `key=name`.

    The error says what the setting is for (`use`, such as "detection"), and which data set to
    choose (`data`, such as "with class labels").
    """
    if not isinstance(task, kind):
        raise ConfigError(key, name, f"is for {use}", f"choose a data set {data}")
    return task
