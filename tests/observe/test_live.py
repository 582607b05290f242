"""The display in a terminal while a run goes on."""

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from threading import Event

import pytest
from rich.console import Console

from ppll_cli.observe.facts import RunFacts, StageFacts
from ppll_cli.observe.live import BAR, Ticker, View, epoch, said, spelled
from ppll_cli.observe.progress import FRACTIONS, Now, StageNow

FACTS = RunFacts(
    metric="accuracy",
    epochs=10,
    start=0,
    steps=200,
    steps_per_epoch=20,
    batch_size=64,
    replicas=1,
    stages=[
        StageFacts("0", "cuda:0", [["stem", "blocks.0", "blocks.1"]], [0], 1000, 2000, 0),
        StageFacts("1", "cuda:1", [["head"]], [1], 10, 20, 3),
    ],
)


def shares(**given: float) -> dict[str, float]:
    return {name: given.get(name, 0.0) for name in FRACTIONS}


NOW = Now(
    step=50,
    steps_per_second=12.5,
    left_s=3723.0,
    stages=(
        StageNow(shares(compute=0.5, aux=0.25), 0, 1_500_000_000),
        StageNow(shares(compute=0.25, starved=0.5, blocked=0.25), 2, None),
    ),
)


def shown(now: Now, width: int, encoding: str = "utf-8", results: str = "") -> list[str]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    Console(file=file, width=width, force_terminal=True, no_color=True).print(
        View(FACTS, now, results)
    )
    file.flush()
    text = raw.getvalue().decode(encoding)
    return [text.rstrip() for text in _without_escapes(text).splitlines()]


def _without_escapes(text: str) -> str:
    while "\x1b[" in text:
        before, _, after = text.partition("\x1b[")
        text = before + after.partition("m")[2]
    return text


def test_a_wide_window_shows_all_columns() -> None:
    head, results, names, first, second, legend = shown(NOW, 120, results="train loss 0.25")
    assert head == (
        f"epoch 3/10  {'━' * (BAR // 4)}{'─' * (BAR - BAR // 4)}  step 50/200  800 samples/s  "
        "1:02:03 left"
    )
    assert results == "train loss 0.25"
    assert names.split() == ["stage", "device", "units", "queue", "memory", "time"]
    assert first.split()[:7] == ["0", "cuda:0", "stem", "to", "blocks.1", "1.5", "GB"]
    assert first.endswith("█" * (BAR // 2) + "▓" * (BAR // 4))
    assert "2/3" in second
    assert second.endswith("█" * (BAR // 4) + "░" * (BAR // 2) + "▒" * (BAR // 4))
    assert legend == "█ compute  ▓ auxiliary  ░ starved  ▒ blocked"


@pytest.mark.parametrize("width", [24, 40, 62, 64, 80, 99, 100, 200])
def test_lines_fit_windows_of_any_width(width: int) -> None:
    lines = shown(NOW, width, results="train loss 0.25  " * 10)
    assert len(lines) == 6
    assert all(len(line) <= width for line in lines)
    assert ("units" in lines[2], "queue" in lines[2]) == (width >= 100, width >= 64)


def test_an_ascii_terminal_gets_ascii_bars() -> None:
    *_, first, second, legend = shown(NOW, 120, encoding="ascii")
    assert first.endswith("#" * (BAR // 2) + "+" * (BAR // 4))
    assert second.endswith("#" * (BAR // 4) + "." * (BAR // 2) + "x" * (BAR // 4))
    assert legend == "# compute  + auxiliary  . starved  x blocked"


def test_the_display_works_before_the_first_step() -> None:
    nothing = Now(0, None, None, (StageNow(None, 0, None),) * 2)
    head, _, first, _, _ = shown(nothing, 80)
    assert head == f"epoch 1/10  {'─' * BAR}  step 0/200"
    assert first.endswith("not known yet")


def test_a_stage_that_restarts_says_so_in_place_of_its_bar() -> None:
    hurt = replace(NOW, stages=(NOW.stages[0], replace(NOW.stages[1], restarts=True)))
    for width in (40, 120):
        *_, first, second, _ = shown(hurt, width)
        assert first == shown(NOW, width)[-3]
        assert second.endswith("restarts")
        assert not {*second} & {*"█▓░▒"}


def test_a_plain_line_shows_the_progress() -> None:
    assert "  ".join(said(FACTS, NOW)) == "epoch 3/10  step 50/200  800 samples/s  1:02:03 left"


def test_after_the_last_step_the_last_epoch_is_shown() -> None:
    assert epoch(FACTS, Now(200, None, None, ())) == "10/10"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "  0:00:00 left"), (59.6, "  0:01:00 left")]
)
def test_the_remaining_time_is_shown_as_text(seconds: float | None, text: str) -> None:
    found = "  ".join(said(FACTS, Now(1, None, seconds, ())))
    assert found == f"epoch 1/10  step 1/200{text}"


def test_a_ticker_ticks_until_it_is_stopped() -> None:
    ticked = Event()
    times: list[float] = []

    def tick(now_s: float) -> None:
        times.append(now_s)
        ticked.set()

    ticker = Ticker(0.001, tick)
    ticker.start()
    assert ticked.wait(10.0)
    ticker.stop()
    assert not ticker.is_alive()
    seen = len(times)
    assert times[-1] <= time.monotonic()
    assert len(times) == seen


def test_a_slow_tick_is_done_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The display uses at most a hundredth of a core."""
    spent = iter([0.0, 0.25])
    monkeypatch.setattr(time, "thread_time", lambda: next(spent))
    ticker = Ticker(0.5, lambda _: None)
    pauses: list[float] = []

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        return len(pauses) == 2

    monkeypatch.setattr(ticker._stopped, "wait", wait)
    ticker.run()
    assert pauses == [0.5, 25.0]


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        (["abcde"], "a to e"),
        (["ab", "cde"], "a to b, c to e"),
        (["a", "bcde"], "a, b to e"),
        (["a", "b", "cde"], "a, b, ..."),
    ],
)
def test_units_that_are_not_neighbours_are_shown_apart(runs: Sequence[str], shown: str) -> None:
    assert spelled(StageFacts("0", "cpu", [[*names] for names in runs], [0], 1, 1, 0)) == shown
