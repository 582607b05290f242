"""Writes the metrics file, and keeps results for the summary."""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any, Self

from ppll_cli.leaves.files import read_json_lines, write_text
from ppll_cli.leaves.metric_lines import CONDITIONS
from ppll_cli.observe.runs import finite, whole
from ppll_cli.tasks.task import Task

Line = dict[str, Any]


@dataclass
class _Epoch:
    number: int = 0
    loss: float = 0.0
    samples: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "_Epoch":
        # Without a checkpoint, `state` is empty. In a damaged one, a count may be anything.
        if not all(_is_count(state.get(key)) for key in ("number", "samples")):
            return cls()
        loss = state.get("loss")
        return cls(state["number"], nan if loss is None else float(loss), state["samples"])

    def add(self, report: Mapping[str, Any]) -> None:
        if report["epoch"] != self.number:
            self.number, self.loss, self.samples = report["epoch"], 0.0, 0
        self.loss += report["loss"]
        self.samples += report["samples"]


@dataclass
class Metrics:
    """Writes workers' reports to `metrics.jsonl`, one line each, and keeps the latest ones.

    Use it as a context manager: on entering, the file is opened.

    Attributes:
        path: Path of the file.
        modules: Number of modules.
        latest: The latest line of each split and module; None stands for the last module, which
            ends with the model's own head.
        last_step: The largest step of any line.
    """

    path: Path
    task: Task
    modules: int
    latest: dict[tuple[str, int | None], Line] = field(default_factory=dict)
    last_step: int = 0
    _began_s: float = 0.0
    _before_s: float = 0.0
    _epoch: _Epoch = field(default_factory=_Epoch)
    _incomplete: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        self._file = self.path.open("a")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After a failed write, closing fails again, but the first failure is already raised.
        with suppress(OSError) if kind is not None else nullcontext():
            self._file.close()

    def check(self) -> None:
        """Check that the metrics file still exists, so that no later line is lost.

        Raises:
            OSError: The file, or the whole run directory, was removed or moved.
        """
        self.path.stat()

    def begin(self, at_s: float) -> None:
        """Begin to count the seconds of training; in a resumed run, continue to count.

        `at_s` is the value of `time.perf_counter` when all workers were ready.
        """
        self._began_s = at_s

    def add(self, report: Mapping[str, Any]) -> Line:
        """Convert a report to a line, write the line, and return it.

        Raises:
            OSError: The line cannot be written, for example because the disk is full.
        """
        own = report["module"] == self.modules - 1
        line: Line = {
            "step": report["step"],
            "epoch": report["epoch"],
            "split": report["split"],
            "module": None if own else report["module"],
            "stage": report["stage"],
            "loss": finite(report["loss"] / report["samples"]),
            **{key: finite(v) for key, v in report["scores"].items()},
            **{key: finite(v) for key, v in report.get("last_step", {}).items()},
            "samples_per_second": finite(report["samples"] / max(report["seconds"], 1e-9)),
            "seconds": round(self._before_s + max(0.0, report["at_s"] - self._began_s), 3),
        }
        if own and report["split"] == "train":
            # A run that stops before a report is due sends an incomplete one. The first report
            # after a resume covers the same steps again.
            complete = report.get("complete", True)
            self._incomplete = None if complete else report
            if complete:
                self._epoch.add(report)
        self.latest[line["split"], line["module"]] = line
        self.last_step = max(self.last_step, line["step"])
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        return line

    def state(self) -> dict[str, Any]:
        """Return the current epoch's sums of losses and samples as plain data, for a checkpoint."""
        return asdict(self._epoch) | {"loss": finite(self._epoch.loss)}

    def go_back(
        self, step: int, state: Mapping[str, Any], evaluated: bool, incomplete: bool = False
    ) -> None:
        """Remove all results measured after a step; for step 0, remove all results.

        Call this before the file is opened.

        Args:
            step: Number of optimizer steps done.
            state: The result of `state()` after this step.
            evaluated: Whether to keep the evaluations at this step.
            incomplete: Whether to remove the training lines at this step, because the first report
                after the resume will also cover the steps of these lines.
        """

        def stays(line: Line) -> bool:
            return not incomplete if line["split"] == "train" else evaluated

        kept = [
            line
            for line in _lines(self.path)
            if line["step"] < step or (line["step"] == step > 0 and stays(line))
        ]
        self.latest = {(line["split"], line["module"]): line for line in kept}
        self.last_step = max((line["step"] for line in kept), default=0)
        self._before_s = max((line.get("seconds", 0.0) for line in kept), default=0.0)
        self._epoch = _Epoch.of(state)
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def history(self, split: str) -> dict[int, float]:
        """Return the model's metric in each evaluation of a split, by optimizer step."""
        found = {}
        for line in _lines(self.path):
            value = line.get(self.task.metric)
            if line["split"] == split and line["module"] is None and isinstance(value, int | float):
                found[line["step"]] = value
        return found

    def written_until(self) -> int:
        """Return the last step of any line in the file; 0 if there is none."""
        return max((line["step"] for line in _lines(self.path)), default=0)

    @property
    def train_loss(self) -> float | None:
        """The model's mean training loss in the latest epoch; None if unknown or not finite."""
        epoch = replace(self._epoch)
        if self._incomplete is not None:
            epoch.add(self._incomplete)
        return finite(epoch.loss / epoch.samples) if epoch.samples else None

    def result(self, split: str, module: int | None = None) -> Line | None:
        """Return loss and scores of the latest evaluation of a split; None if there was none.

        Args:
            split: A split, or a split with a suffix, such as `test_ema`.
            module: Number of the module; None for the model's own head.
        """
        module = None if module == self.modules - 1 else module
        line = self.latest.get((split, module))
        return line and {key: value for key, value in line.items() if key not in CONDITIONS}


def _lines(path: Path) -> Iterator[Line]:
    return (line for line in read_json_lines(path) if _is_line(line))


def _is_line(line: Mapping[str, Any]) -> bool:
    module = line.get("module")
    return (
        _is_count(line.get("step"))
        and isinstance(line.get("split"), str)
        and "module" in line
        and (module is None or _is_count(module))
        and finite(line.get("seconds", 0.0)) is not None
        and all(
            value is None or isinstance(value, str) or finite(value) is not None
            for value in line.values()
        )
    )


def _is_count(value: Any) -> bool:
    return (found := whole(value)) is not None and 0 <= found < 1 << 63
