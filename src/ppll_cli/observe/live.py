"""Shows the live display of a run in a terminal, and runs the thread that updates it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.facts import RunFacts, StageFacts
from ppll_cli.observe.progress import Now, StageNow

UNITS_FROM, QUEUE_FROM = 100, 64
"""Smallest widths of a window, in characters: from `UNITS_FROM` on, the display has the column of
units; from `QUEUE_FROM` on, the columns of queues and memory."""

BAR, SHORTEST = 40, 8
"""Largest and smallest length of a bar, in characters."""

LONGEST_NAME = 60


@dataclass(frozen=True)
class Share:
    """A part of a stage's bar, which shows a fraction of the stage's time.

    `fraction` is a key of `ppll_cli.observe.progress.FRACTIONS`, and `name` is shown in the legend.
    The part is drawn with `block`, or with `letter` if the terminal has no block characters.
    """

    fraction: str
    name: str
    block: str
    letter: str
    style: str


SHARES = (
    Share("compute", "compute", "█", "#", "blue"),
    Share("aux", "auxiliary", "▓", "+", "yellow"),
    Share("starved", "starved", "░", ".", "bright_black"),
    Share("blocked", "blocked", "▒", "x", "magenta"),
)


@dataclass(frozen=True)
class View:
    """The display of a run at one moment, fitted to the window's width.

    `results` is a line with the latest metrics; it may be empty.
    """

    facts: RunFacts
    now: Now
    results: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Rich's own tables and bars would look the same, but are several times slower.
        width, blocks = options.max_width, not options.ascii_only
        text = Text(no_wrap=True, overflow="ellipsis" if blocks else "crop")
        text.append(self._head(width, blocks))
        if self.results:
            text.append(f"{self.results}\n")
        stages = list(zip(self.facts.stages, self.now.stages, strict=True))
        columns = [
            ["stage", *(s.name for s, _ in stages)],
            ["device", *(s.device for s, _ in stages)],
        ]
        if width >= UNITS_FROM:
            columns.append(["units", *(spelled(stage) for stage, _ in stages)])
        if width >= QUEUE_FROM:
            columns.append(["queue", *(_queue(stage, now) for stage, now in stages)])
            columns.append(["memory", *(size(now.memory_bytes) for _, now in stages)])
        padded = ([f"{cell:{max(map(len, cells))}}  " for cell in cells] for cells in columns)
        names, *rows = map("".join, zip(*padded, strict=True))
        room = max(SHORTEST, min(BAR, width - len(names)))
        text.append(f"{names}time\n", style="dim")
        for row, now in zip(rows, self.now.stages, strict=True):
            text.append(row)
            if now.restarts:
                text.append("restarts", style="red")
            else:
                append_bar(text, now.shares, room, blocks)
            text.append("\n")
        for share in SHARES:
            text.append(share.block if blocks else share.letter, style=share.style)
            text.append(f" {share.name}  ", style="dim")
        yield text

    def _head(self, width: int, blocks: bool) -> str:
        first, *rest = said(self.facts, self.now)
        room = min(BAR, width - len("  ".join([first, *rest])) - 2)
        if room >= SHORTEST:
            done = round(room * self.now.step / self.facts.steps)
            whole, light = ("━", "─") if blocks else ("=", "-")
            rest.insert(0, whole * done + light * (room - done))
        return "  ".join([first, *rest]) + "\n"


def epoch(facts: RunFacts, now: Now) -> str:
    """Return the current epoch, from 1, and the number of epochs, such as "2/10"."""
    return f"{min(facts.epochs, now.step // facts.steps_per_epoch + 1)}/{facts.epochs}"


def said(facts: RunFacts, now: Now) -> list[str]:
    """Return the progress of the run as parts of a line: epoch, step, speed and remaining time."""
    found = [f"epoch {epoch(facts, now)}", f"step {now.step}/{facts.steps}"]
    if now.steps_per_second is not None:
        found.append(f"{now.steps_per_second * facts.batch_size:.0f} samples/s")
    if now.left_s is not None:
        found.append(f"{timedelta(seconds=round(now.left_s))} left")
    return found


def few(names: Sequence[str]) -> str:
    """Return the first and the last name as text, such as "embed to head"; one name as it is."""
    first, last = (printable(names[end], LONGEST_NAME) for end in (0, -1))
    return first if len(names) == 1 else f"{first} to {last}"


def spelled(stage: StageFacts) -> str:
    """Return a stage's units as text, such as "embed to blocks.1, blocks.4 to blocks.5, ...".

    It names at most two groups of consecutive units.
    """
    runs = [few(names) for names in stage.units]
    return ", ".join(runs[:2]) + ", ..." * (len(runs) > 2)


def _queue(stage: StageFacts, state: StageNow) -> str:
    return f"{min(state.queued, stage.slots)}/{stage.slots}" if stage.slots else ""


def size(count: int | None) -> str:
    """Return a number of bytes as text; empty if unknown."""
    if count is None:
        return ""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def append_bar(text: Text, shares: Mapping[str, float] | None, width: int, blocks: bool) -> None:
    """Append a bar that shows what a stage spent its time on.

    The bar has a part for each of `SHARES`. It is shorter than `width` if the stage also spent time
    on other work, such as transfers. `shares` has the fractions of the time by the keys of
    `FRACTIONS`; None if they are not known yet.
    """
    if shares is None:
        text.append("not known yet", style="dim")
        return
    whole, drawn = 0.0, 0
    for share in SHARES:
        whole += shares[share.fraction]
        end = round(width * min(1.0, whole))
        text.append((share.block if blocks else share.letter) * (end - drawn), style=share.style)
        drawn = end


class Ticker(Thread):
    """A thread that calls `tick` every `every_s` seconds with the time of `time.monotonic`.

    If the calls need much computation, they become rarer, so that they use at most 1 % of a core.
    """

    def __init__(self, every_s: float, tick: Callable[[float], None]) -> None:
        super().__init__(name="ppll-display", daemon=True)
        self._every_s, self._tick, self._stopped = every_s, tick, Event()

    def run(self) -> None:
        """Call `tick` again and again, until another thread calls `stop`."""
        pause_s = self._every_s
        while not self._stopped.wait(pause_s):
            before_s = time.thread_time()
            self._tick(time.monotonic())
            pause_s = max(self._every_s, 100 * (time.thread_time() - before_s))

    def stop(self) -> None:
        """End the thread. If `tick` is running, wait until it returns."""
        self._stopped.set()
        self.join()
