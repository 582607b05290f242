"""What a run prints while it goes on and when it ends."""

from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

Line = dict[str, Any]


class Console:
    """Owns the terminal: results go to stdout, one line each.

    Args:
        metric: Name of the task's metric.
        epochs: How many epochs the run has.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        self._metric, self._epochs = metric, epochs
        self._out = RichConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._train: Line | None = None

    def metrics(self, line: Line) -> None:
        """A line of the metrics file; evaluations of the model's own head are shown."""
        if line["module"] is not None:
            return
        if line["split"] == "train":
            self._train = line
            return
        train = f"train loss {_number(self._train['loss'])}  " if self._train else ""
        self._out.print(
            f"epoch {line['epoch']}/{self._epochs}  step {line['step']}  {train}"
            f"{line['split']} loss {_number(line['loss'])}  "
            f"{line['split']} {self._metric} {_number(line[self._metric])}"
        )

    def end(self, summary: dict[str, Any], run_dir: Path) -> None:
        """The summary; the last line names the metric and the run directory."""
        rate = summary["train"]["samples_per_second"]
        bubble = summary["pipeline"]["bubble_fraction"]
        self._out.print(
            f"{summary['status']} after {summary['steps']} steps in "
            f"{summary['train']['seconds']:.1f} s: {_number(rate, 0)} samples/s in the steady "
            f"state, bubble {_number(bubble)}, "
            f"{'emulated on ' if summary['emulated'] else ''}{', '.join(summary['devices'])}"
        )
        result = summary["test"] or {}
        self._out.print(f"test {self._metric} {_number(result.get(self._metric))} in {run_dir}")


def _number(value: float | None, digits: int = 4) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
