"""What a run prints: before it starts, while it goes on, and when it ends."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table

from ppll_cli.names import device_name, seat_name
from ppll_cli.observe.facts import RunFacts
from ppll_cli.observe.live import Ticker, View, few, line, size
from ppll_cli.observe.progress import Look, Progress

Line = Mapping[str, Any]

REFRESH_S, PLAIN_S = 0.5, 10.0
"""Between updates of a live display, and between lines where there is no terminal."""

PLAIN_WIDTH = 120
"""Columns of tables where there is no terminal."""


class Console:
    """Owns the terminal: results go to stdout.

    While the workers run there is, on a terminal, a live display, elsewhere a plain line every few
    seconds, from `watch` until `close`.

    Args:
        facts: The run.
    """

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        width = None if sys.stdout.isatty() else PLAIN_WIDTH
        self._out = RichConsole(highlight=False, markup=False, emoji=False, width=width)
        self._held = ExitStack()
        self._train: Line | None = None
        self._results: dict[str, str] = {}
        self._spoke_s = 0.0

    def settings(self, changes: Sequence[str]) -> None:
        """The settings that differ from the defaults."""
        self._say(f"settings: {' '.join(changes) or 'the defaults'}")

    def begin(self, run_dir: Path) -> None:
        """The stages, and where results go."""
        names = ["stage", "device", "units", "modules", "parameters", "FLOPs"]
        flops = sum(stage.flops for stage in self._facts.stages)
        rows = [
            [
                stage.name,
                stage.device,
                f"{few(stage.units)} ({len(stage.units)})",
                few([str(module) for module in stage.modules]) if stage.modules else "",
                f"{stage.params:,}",
                f"{stage.flops / max(1, flops):.0%}",
            ]
            for stage in self._facts.stages
        ]
        self._out.print(_table(names, rows, left=("device", "units", "modules")))
        self._say(f"output: {run_dir}")

    def watch(self, looks: Callable[[], Sequence[Look]]) -> None:
        """Show how far the run is until `close`.

        Args:
            looks: Looks at each stage.
        """
        progress = Progress(self._facts.start, self._facts.steps, self._facts.replicas)
        self._spoke_s = time.monotonic()
        if not self._out.is_terminal or self._out.is_dumb_terminal:

            def speak(now_s: float) -> None:
                now = progress.update(now_s, looks())
                if now_s - self._spoke_s >= PLAIN_S and now.step < self._facts.steps:
                    self._spoke_s = now_s
                    self._say(line(self._facts, now))

            self._tick(PLAIN_S / 5, speak)
            return
        live = self._held.enter_context(
            Live(
                console=self._out,
                auto_refresh=False,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),
            )
        )
        self._out.show_cursor(True)  # a run that is stopped by Ctrl-Z leaves the terminal as it is
        self._held.enter_context(_logs_above())

        def show(now_s: float) -> None:
            now = progress.update(now_s, looks())
            results = "  ".join(self._results.values())
            live.update(View(self._facts, now, results), refresh=True)

        self._tick(REFRESH_S, show)

    def _tick(self, every_s: float, tick: Callable[[float], None]) -> None:
        ticker = Ticker(every_s, tick)
        ticker.start()
        self._held.callback(ticker.stop)

    def close(self) -> None:
        """The workers have ended: nothing more is shown of them."""
        self._held.close()

    def metrics(self, line: Line) -> None:
        """A line of the metrics file; evaluations of the model's own head are shown."""
        if line["module"] is not None:
            return
        split, metric = line["split"], self._facts.metric
        if split == "train":
            self._train = line
            self._results["train"] = f"train loss {_number(line['loss'])}"
            return
        train = f"train loss {_number(self._train['loss'])}  " if self._train else ""
        value = _number(line.get(metric))
        result = f"{split} loss {_number(line['loss'])}  {split} {metric} {value}"
        self._results[split] = result
        self._spoke_s = time.monotonic()
        self._say(
            f"epoch {line['epoch']}/{self._facts.epochs}  step {line['step']}  {train}{result}"
        )

    def end(self, summary: Line, run_dir: Path, then: str | None = None) -> None:
        """The summary; the last line names the metric and the run directory.

        Args:
            summary: What `summary.json` holds.
            run_dir: The run directory.
            then: A command worth trying next.
        """
        for table in self._tables(summary):
            self._out.print(table)
        if then:
            self._say(f"next: {then}")
        rate = summary["train"]["samples_per_second"]
        bubble = summary["pipeline"]["bubble_fraction"]
        self._say(
            f"{summary['status']} after {summary['steps']} steps in "
            f"{summary['train']['seconds']:.1f} s: {_number(rate, 0)} samples/s in the steady "
            f"state, bubble {_number(bubble)}, "
            f"{'emulated on ' if summary['emulated'] else ''}{', '.join(summary['devices'])}"
        )
        metric = self._facts.metric
        result = summary["test"] or {}
        self._say(f"test {metric} {_number(result.get(metric))} in {run_dir}")

    def _tables(self, summary: Line) -> Iterator[Table]:
        """What each stage did, and what each module learned, where there are several."""
        modules, metric = summary["per_module"], self._facts.metric
        if len(modules) > 1:
            names = ["module", "units", "parameters", "auxiliary", f"test {metric}"]
            rows = [
                [
                    str(index),
                    few(module["units"]),
                    f"{module['params']:,}",
                    f"{module['aux_params']:,}",
                    _number((module["test"] or {}).get(metric)),
                ]
                for index, module in enumerate(modules)
            ]
            yield _table(names, rows, left=("units",))
        parts = ["compute", "aux", "starved", "blocked"]
        if summary["replicas"] > 1:
            parts.append("average")
        names = ["stage", "device", *(p.replace("aux", "auxiliary") for p in parts), "memory"]
        rows = [
            [
                seat_name(stage["index"], stage["replica"], summary["replicas"]),
                device_name(stage["device"], stage["machine"], summary["machines"]),
                *(_number(stage[f"{part}_fraction"], 3) for part in parts),
                size(stage["peak_memory_bytes"]) or "unknown",
            ]
            for stage in summary["stages"]
        ]
        yield _table(names, rows, left=("device",))

    def _say(self, text: str) -> None:
        """A line, however long."""
        self._out.print(text, soft_wrap=True)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*row)
    return table


@contextmanager
def _logs_above() -> Iterator[None]:
    """Have what is logged to a terminal written above a live display, which owns it."""
    moved: list[tuple[logging.StreamHandler[Any], Any]] = []
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
            moved.append((handler, handler.setStream(sys.stderr)))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def _number(value: float | None, digits: int = 4) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
