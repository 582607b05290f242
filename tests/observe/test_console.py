"""The lines that a run prints."""

import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.errors import Interrupted
from ppll_cli.observe.console import Console
from ppll_cli.observe.facts import RunFacts, StageFacts
from ppll_cli.observe.logs import LogFile

FACTS = RunFacts(
    metric="accuracy",
    epochs=8,
    start=0,
    steps=80,
    steps_per_epoch=10,
    batch_size=64,
    replicas=1,
    stages=[
        StageFacts("0", "cuda:0", [["stem", "blocks.0"]], [0, 1], 1_500, 3000, 0),
        StageFacts("1", "cuda:1", [["head"]], [2], 500, 1000, 3),
    ],
)
LINE = {"step": 40, "epoch": 4, "module": None, "loss": 0.25, "accuracy": 0.875}
STAGE = {
    "replica": 0,
    "machine": 0,
    "compute_fraction": 0.75,
    "aux_fraction": 0.125,
    "starved_fraction": 0.0625,
    "blocked_fraction": 0.0,
}
SUMMARY: dict[str, Any] = {
    "status": "completed",
    "steps": 40,
    "replicas": 1,
    "machines": 1,
    "emulated": False,
    "devices": ["cuda:0", "cuda:1"],
    "train": {"seconds": 12.34, "samples_per_second": 1234.5},
    "test": {"loss": 0.25, "accuracy": 0.875},
    "pipeline": {"bubble_fraction": 0.125},
    "per_module": [
        {"units": ["stem"], "params": 1000, "aux_params": 50, "test": {"accuracy": 0.5}},
        {"units": ["blocks.0", "head"], "params": 900, "aux_params": 0, "test": None},
    ],
    "stages": [
        {"index": 0, "device": "cuda:0", "peak_memory_bytes": 2_000_000_000, **STAGE},
        {"index": 1, "device": "cuda:1", "peak_memory_bytes": None, **STAGE},
    ],
}
Capture = pytest.CaptureFixture[str]


def test_an_evaluation_is_shown_with_the_training_before_it(capsys: Capture) -> None:
    console = Console(FACTS)
    console.metrics({**LINE, "split": "train", "loss": 1.5})
    console.metrics({**LINE, "split": "val"})
    console.metrics({**LINE, "split": "test", "loss": None})
    console.metrics({"step": 40, "epoch": 4, "module": None, "loss": 0.5, "split": "test"})
    assert capsys.readouterr().out.splitlines() == [
        "epoch 4/8  step 40  train loss 1.5000  val loss 0.2500  val accuracy 0.8750",
        "epoch 4/8  step 40  train loss 1.5000  test loss unknown  test accuracy 0.8750",
        "epoch 4/8  step 40  train loss 1.5000  test loss 0.5000  test accuracy unknown",
    ]


def test_an_evaluation_can_be_shown_without_training_before_it(capsys: Capture) -> None:
    Console(replace(FACTS, metric="psnr")).metrics({**LINE, "split": "test", "psnr": 30.0})
    expected = "epoch 4/8  step 40  test loss 0.2500  test psnr 30.0000\n"
    assert capsys.readouterr().out == expected


def test_local_modules_are_not_shown(capsys: Capture) -> None:
    console = Console(FACTS)
    console.metrics({**LINE, "split": "test", "module": 0})
    console.metrics({**LINE, "split": "train", "module": 0, "loss": 9.0})
    assert capsys.readouterr().out == ""


def test_the_end_shows_speed_and_result(capsys: Capture) -> None:
    Console(FACTS).end(SUMMARY, Path("outputs/x"))
    *_, first, last = capsys.readouterr().out.splitlines()
    assert first == (
        "completed after 40 steps in 12.3 s: 1234 samples/s in the steady state, bubble 0.1250, "
        "cuda:0, cuda:1"
    )
    assert last == "test accuracy 0.8750 in outputs/x"


def test_the_last_line_has_the_reference_of_the_metric(capsys: Capture) -> None:
    """The reference is the result whose name begins with the task's reference.

    A result with another beginning, but the same end, is not used.
    """
    facts = replace(FACTS, metric="psnr", reference="bicubic")
    test = {"loss": 0.25, "rgb_psnr": 29.0, "psnr": 30.5, "bicubic_psnr": 28.25}
    for summary in ({**SUMMARY, "test": test}, {**SUMMARY, "test": {"psnr": 30.5}}):
        Console(facts).end(summary, Path("outputs/x"))
        Console(facts).nothing_to_do(summary, Path("outputs/x"), "more")
    Console(replace(facts, reference=None)).end({**SUMMARY, "test": test}, Path("outputs/x"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test psnr")]
    with_reference, alone = (
        "test psnr 30.5000 (bicubic 28.2500) in outputs/x",
        "test psnr 30.5000 in outputs/x",
    )
    assert said == [with_reference, with_reference, alone, alone, alone]


def test_the_end_can_be_shown_with_unknown_values(capsys: Capture) -> None:
    unknown = {
        **SUMMARY,
        "status": "interrupted",
        "emulated": True,
        "train": {"seconds": 0.0, "samples_per_second": None},
        "test": None,
        "pipeline": {"bubble_fraction": None},
    }
    Console(FACTS).end(unknown, Path("outputs/x"))
    *tables, first, last = capsys.readouterr().out.splitlines()
    assert not [line for line in tables if line.startswith("stage")]  # without known values
    assert first == (
        "interrupted after 40 steps in 0.0 s: too short for a steady state, "
        "emulated on cuda:0, cuda:1"
    )
    assert last == "test accuracy unknown in outputs/x"


def test_a_path_is_printed_without_changes(capsys: Capture) -> None:
    """The path stays in one line, even if it is long.

    No part of it is read as a colour or an emoji.
    """
    path = Path(f"/{'long' * 60}/[red]/:smile:/x")
    Console(FACTS).end(SUMMARY, path)
    assert capsys.readouterr().out.splitlines()[-1] == f"test accuracy 0.8750 in {path}"


def test_the_beginning_shows_stages_and_the_folder(capsys: Capture) -> None:
    Console(FACTS).begin(Path("outputs/x"))
    names, first, second, output = capsys.readouterr().out.splitlines()
    assert names.split() == ["stage", "device", "units", "modules", "parameters", "FLOPs"]
    assert first.split() == [
        "0",
        "cuda:0",
        "stem",
        "to",
        "blocks.0",
        "(2)",
        "0",
        "to",
        "1",
        "1,500",
        "75%",
    ]
    assert second.split() == ["1", "cuda:1", "head", "(1)", "2", "500", "25%"]
    assert output == "output: outputs/x"


def test_settings_are_shown_in_a_line(capsys: Capture) -> None:
    Console(FACTS).settings(["schedule=ll", "epochs=8"])
    Console(FACTS).settings([])
    said = capsys.readouterr().out.splitlines()
    assert said == ["settings: schedule=ll epochs=8", "settings: the defaults"]


def test_the_end_has_tables_of_stages_and_modules(capsys: Capture) -> None:
    Console(FACTS).end(SUMMARY, Path("outputs/x"), then="ppll-run schedule=bp")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:-2] == [
        ["module", "units", "parameters", "auxiliary", "test", "accuracy"],
        ["0", "stem", "1,000", "50", "0.5000"],
        ["1", "blocks.0", "to", "head", "900", "0", "unknown"],
        ["stage", "device", "compute", "auxiliary", "starved", "blocked", "memory"],
        ["0", "cuda:0", "0.750", "0.125", "0.062", "0.000", "2.0", "GB"],
        ["1", "cuda:1", "0.750", "0.125", "0.062", "0.000", "unknown"],
        ["next:", "ppll-run", "schedule=bp"],
    ]


def test_a_single_module_has_no_table(capsys: Capture) -> None:
    Console(FACTS).end({**SUMMARY, "per_module": SUMMARY["per_module"][:1]}, Path("outputs/x"))
    assert capsys.readouterr().out.startswith("stage ")


def test_the_table_of_stages_names_several_machines(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [{**stage, "machine": n} for n, stage in enumerate(SUMMARY["stages"])]
    summary = {**SUMMARY, "per_module": [], "stages": stages, "machines": 2}
    Console(FACTS).end(summary, Path("outputs/x"))
    _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert ("machine 0 cuda:0" in first, "machine 1 cuda:1" in second) == (True, True)


def test_replicas_have_their_own_rows(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [
        {**stage, "index": 0, "replica": index, "average_fraction": 0.25}
        for index, stage in enumerate(SUMMARY["stages"])
    ]
    summary = {**SUMMARY, "per_module": [], "stages": stages, "replicas": 2}
    Console(FACTS).end(summary, Path("outputs/x"))
    head, first, second, *_ = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[-2:] == ["average", "memory"]
    assert (first[:4], second[:4]) == (
        ["0", "replica", "0", "cuda:0"],
        ["0", "replica", "1", "cuda:1"],
    )
    assert "0.250" in first


class Broken(io.StringIO):
    """A stream without a reader."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    encoding = "ascii"

    def isatty(self) -> bool:
        return True


def show_everything(console: Console) -> None:
    console.settings(["schedule=ll"])
    console.begin(Path("outputs/x"))
    console.watch(list)
    console.metrics({**LINE, "split": "test"})
    console.close()
    console.end(SUMMARY, Path("outputs/x"))


@pytest.mark.parametrize("make", [Broken, lambda: None])
def test_a_broken_stream_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]
) -> None:
    """Rich would end the program when a pipe is broken."""
    monkeypatch.setattr(sys, "stdout", make())
    show_everything(Console(FACTS))


def test_a_failing_display_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    console = Console(FACTS)
    monkeypatch.setattr(console._out, "print", lambda *_, **__: 1 / 0)
    show_everything(console)
    expected = "the display of the run has stopped: ZeroDivisionError: division by zero"
    assert caplog.messages == [expected]


def test_a_signal_during_printing_ends_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted(2)

    console = Console(FACTS)
    monkeypatch.setattr(console._out, "print", interrupted)
    with pytest.raises(Interrupted):
        console.settings([])


@pytest.mark.parametrize("columns", ["0", "1", "19"])
@pytest.mark.parametrize("term", ["xterm", "dumb", ""])
def test_a_very_narrow_terminal_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, columns: str, term: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(FACTS)
    show_everything(console)
    assert not console.lost
    printed = terminal.getvalue()
    assert "\x1b[?25l" not in printed
    assert printed.isascii()
    assert printed.splitlines()[-1] == "test accuracy 0.8750 in outputs/x"


def test_a_file_gets_no_live_display_even_if_colours_are_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many build servers set FORCE_COLOR; their logs had the codes that move a cursor."""
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    show_everything(Console(FACTS))
    assert "\x1b[?25" not in file.getvalue()


@pytest.mark.parametrize("columns", ["20", "30"])
def test_a_narrow_terminal_breaks_no_words(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """The tables once had one letter in each line."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(FACTS)
    console.begin(Path("outputs/x"))
    first = terminal.getvalue().splitlines()[0]
    assert first.split() == ["stage", "device", "units", "modules", "parameters", "FLOPs"]


def test_the_log_file_has_the_same_lines(tmp_path: Path, capsys: Capture) -> None:
    handler = LogFile(str(tmp_path / "log"))
    logging.getLogger().addHandler(handler)
    try:
        show_everything(Console(FACTS))
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert (tmp_path / "log").read_text().splitlines() == printed


def test_control_characters_are_escaped_and_long_names_shortened(capsys: Capture) -> None:
    stage = StageFacts("0", "cpu", [[5000 * "u", "\x1b[2J"]], [0], 1, 1, 0)
    console = Console(replace(FACTS, stages=[stage]))
    console.settings([f"data.root={5000 * 'x'}"])
    console.begin(Path("outputs/\x1b]0;x\x07"))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"\x1b[2J" in printed
    assert printed.splitlines()[-1] == r"output: outputs/\x1b]0;x\x07"
    assert len(printed) < 1500
