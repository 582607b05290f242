"""Prints lines and tables before a run starts, while it runs, and when it ends."""

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from rich.console import Console as RichConsole
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table

from ppll_cli.config.commands import short_path, word
from ppll_cli.leaves.names import place_name, seat_name
from ppll_cli.leaves.printable import LONGEST, printable
from ppll_cli.observe.facts import RunFacts
from ppll_cli.observe.live import Ticker, View, few, said, size, spelled
from ppll_cli.observe.logs import only_warn, to_file
from ppll_cli.observe.progress import Look, Progress

log = logging.getLogger(__name__)

P = ParamSpec("P")
Line = Mapping[str, Any]

REFRESH_S, PLAIN_S = 0.5, 10.0
"""Seconds between two updates of a live display, and between two lines without a display."""

PLAIN_WIDTH = 120
"""Width of tables, in characters, outside a terminal."""

TOO_SHORT = "too short for a steady state"
"""Printed in place of the speed and the bubble."""

STOPPED = "the display of the run has stopped"

LEFT = ("device", "units", "modules")
"""Columns of tables that are aligned to the left."""

NARROWEST = 20
"""Smallest width of a terminal, in characters, for a live display and for tables of its width."""

NO_CURSOR = ("", "dumb", "unknown")
"""Values of TERM for terminals that cannot move the cursor."""


def rich_console(plain_width: int = PLAIN_WIDTH) -> RichConsole:
    """Return Rich's console for stdout.

    If stdout is no terminal, or a very narrow one, the console is `plain_width` characters wide.
    """
    out = RichConsole(highlight=False, markup=False, emoji=False)
    if not _is_terminal(out) or out.width < NARROWEST:
        out.width = plain_width
    return out


def _is_terminal(out: RichConsole) -> bool:
    try:
        return out.file.isatty()
    except ValueError:  # stdout is closed
        return False


def _never_raises(
    method: Callable[Concatenate["Console", P], None],
) -> Callable[Concatenate["Console", P], None]:
    # A display must not end a run.
    @wraps(method)
    def shown(console: "Console", /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not console.lost:
            with only_warn(STOPPED):  # catches SystemExit too: Rich exits if a pipe is broken
                method(console, *args, **kwargs)
                return
            console.lost = True

    return shown


class Console:
    """Prints the progress and the results of a run, and also writes them to the log file.

    From `watch` to `close`, stdout has a live display. If it cannot show one, a plain line is
    printed every few seconds. If printing fails, `lost` becomes True, and nothing more is printed.
    """

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self.lost = False
        self._out = rich_console()
        self._held = ExitStack()
        self._results: dict[str, str] = {}
        self._spoke_s = 0.0

    @_never_raises
    def settings(self, changes: Sequence[str]) -> None:
        """Print the settings that differ from the defaults."""
        shown = " ".join(printable(word(change), LONGEST) for change in changes)
        self._say(f"settings: {shown or 'the defaults'}")

    @_never_raises
    def begin(self, run_dir: Path) -> None:
        """Print the stages and the run directory."""
        stages = self._facts.stages
        flops = max(1, sum(stage.flops for stage in stages))
        columns = {
            "stage": [stage.name for stage in stages],
            "device": [stage.device for stage in stages],
            "units": [f"{spelled(stage)} ({sum(map(len, stage.units))})" for stage in stages],
            "modules": [
                few([*map(str, stage.modules)]) if stage.modules else "" for stage in stages
            ],
            "parameters": [f"{stage.params:,}" for stage in stages],
            "FLOPs": [f"{stage.flops / flops:.0%}" for stage in stages],
        }
        self._print(_table(columns))
        self._say(f"output: {short_path(run_dir)}")

    @_never_raises
    def watch(self, looks: Callable[[], Sequence[Look]]) -> None:
        """Show the progress of the run until `close`. `looks` returns the state of each worker."""
        progress = Progress(self._facts.start, self._facts.steps, self._facts.replicas)
        self._spoke_s = time.monotonic()
        every_s, live = PLAIN_S / 5, None
        if self._has_display():
            every_s = REFRESH_S
            live = Live(
                console=self._out,
                auto_refresh=False,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._held.enter_context(live)
            self._out.show_cursor(True)  # Live hides it, so the shell would lack it after Ctrl-Z
            self._held.enter_context(_logs_above())

        @_never_raises
        def tick(console: Console, now_s: float) -> None:
            now = progress.update(now_s, looks())
            if live is not None:
                results = "  ".join(console._results.values())
                live.update(View(console._facts, now, results), refresh=True)
            elif now_s - console._spoke_s >= PLAIN_S and now.step < console._facts.steps:
                console._spoke_s = now_s
                console._say("  ".join(said(console._facts, now)))

        ticker = Ticker(every_s, partial(tick, self))
        ticker.start()
        self._held.callback(ticker.stop)

    def _has_display(self) -> bool:
        moves = os.environ.get("TERM", "").lower() not in NO_CURSOR
        wide = RichConsole(file=self._out.file).width >= NARROWEST  # `_out` may have a fixed width
        # Rich takes a file for a terminal if FORCE_COLOR is set; many build servers set it.
        return _is_terminal(self._out) and moves and wide

    def close(self) -> None:
        """End the display. Call this after the workers have ended."""
        with only_warn(STOPPED):
            self._held.close()

    @_never_raises
    def metrics(self, line: Line) -> None:
        """Print an evaluation of the model's own head.

        The line with a training loss is not printed immediately, but with the next evaluation.
        """
        if line["module"] is not None:
            return
        split, metric = line["split"], self._facts.metric
        result = f"{split} loss {_number(line['loss'])}"
        if split == "train":
            self._results[split] = result
            return
        result += f"  {split} {metric} {_number(line.get(metric))}"
        said = [f"epoch {line['epoch']}/{self._facts.epochs}", f"step {line['step']}"]
        said += [self._results["train"]] if "train" in self._results else []
        self._results[split] = result
        self._spoke_s = time.monotonic()
        self._say("  ".join([*said, result]))

    @_never_raises
    def end(self, summary: Line, run_dir: Path, then: str | None = None) -> None:
        """Print the summary of a run; `then` is a command that the user may run next."""
        for table in self._tables(summary):
            self._print(table)
        if then:
            self._say(f"next: {then}")
        rate = summary["train"]["samples_per_second"]
        speed = (
            f"{_number(rate, 0)} samples/s in the steady state, "
            f"bubble {_number(summary['pipeline']['bubble_fraction'])}"
        )
        self._say(
            f"{summary['status']} after {summary['steps']} steps in "
            f"{summary['train']['seconds']:.1f} s: {speed if _steady(summary) else TOO_SHORT}, "
            f"{'emulated on ' if summary['emulated'] else ''}{', '.join(summary['devices'])}"
        )
        self._result(summary, run_dir)

    @_never_raises
    def nothing_to_do(self, summary: Line, run_dir: Path, more: str) -> None:
        """Print that the run is complete; `more` says how to train longer."""
        done = f"the run is complete after {summary['steps']} steps: there is nothing to do"
        self._say(f"{done}; to train longer, {more}")
        self._result(summary, run_dir)

    def _result(self, summary: Line, run_dir: Path) -> None:
        metric, reference = self._facts.metric, self._facts.reference
        test = summary["test"] or {}
        beside = test.get(f"{reference}_{metric}") if reference else None
        compared = "" if beside is None else f" ({reference} {_number(beside)})"
        self._say(f"test {metric} {_number(test.get(metric))}{compared} in {short_path(run_dir)}")

    def _tables(self, summary: Line) -> Iterator[Table]:
        modules, stages = summary["per_module"], summary["stages"]
        metric, replicas = self._facts.metric, summary["replicas"]
        if len(modules) > 1:
            tested = [module["test"] or {} for module in modules]
            columns = {
                "module": [str(index) for index in range(len(modules))],
                "units": [few(module["units"]) for module in modules],
                "parameters": [f"{module['params']:,}" for module in modules],
                "auxiliary": [f"{module['aux_params']:,}" for module in modules],
                f"test {metric}": [_number(test.get(metric)) for test in tested],
            }
            yield _table(columns)
        if not _steady(summary):
            return
        parts = ["compute", "aux", "starved", "blocked", *["average"] * (replicas > 1)]
        places = [
            place_name(each["device"], each["machine"], summary["machines"]) for each in stages
        ]
        columns = {
            "stage": [seat_name(each["index"], each["replica"], replicas) for each in stages],
            "device": places,
            **{
                part.replace("aux", "auxiliary"): [
                    _number(each[f"{part}_fraction"], 3) for each in stages
                ]
                for part in parts
            },
            "memory": [size(each["peak_memory_bytes"]) or "unknown" for each in stages],
        }
        yield _table(columns)

    def _say(self, text: str) -> None:
        self._print(printable(text), soft_wrap=True)

    def _print(self, what: Table | str, soft_wrap: bool = False) -> None:
        text = _plain(what) if isinstance(what, Table) else what
        if isinstance(what, Table) and _least_width(self._out, what) > self._out.width:
            what, soft_wrap = text, True  # a table as wide as the terminal would break words
        self._out.print(what, soft_wrap=soft_wrap)
        to_file(text)


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in LEFT else "right", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(printable, row))
    return table


def _plain(table: Table) -> str:
    plain = RichConsole(file=io.StringIO(), width=PLAIN_WIDTH, color_system=None)
    with plain.capture() as captured:
        plain.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _least_width(out: RichConsole, table: Table) -> int:
    return Measurement.get(out, out.options.update_width(PLAIN_WIDTH), table).minimum


@contextmanager
def _logs_above() -> Iterator[None]:
    moved: list[tuple[logging.StreamHandler[Any], Any]] = []
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
            # Rich has replaced sys.stderr: what is written to the new stream appears above the
            # live display.
            moved.append((handler, handler.setStream(sys.stderr)))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def _steady(summary: Line) -> bool:
    return summary["train"]["samples_per_second"] is not None


def _number(value: float | None, digits: int = 4) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
