"""What a run prints."""

from pathlib import Path
from typing import Any

import pytest

from ppll_cli.observe.console import Console

LINE = {"step": 40, "epoch": 4, "module": None, "loss": 0.25, "accuracy": 0.875}
SUMMARY: dict[str, Any] = {
    "status": "completed",
    "steps": 40,
    "emulated": False,
    "devices": ["cuda:0", "cuda:1"],
    "train": {"seconds": 12.34, "samples_per_second": 1234.5},
    "test": {"loss": 0.25, "accuracy": 0.875},
    "pipeline": {"bubble_fraction": 0.125},
}
Capture = pytest.CaptureFixture[str]


def test_an_evaluation_is_shown_with_the_training_before_it(capsys: Capture) -> None:
    console = Console("accuracy", epochs=8)
    console.metrics({**LINE, "split": "train", "loss": 1.5})
    console.metrics({**LINE, "split": "val"})
    console.metrics({**LINE, "split": "test", "loss": None})
    assert capsys.readouterr().out.splitlines() == [
        "epoch 4/8  step 40  train loss 1.5000  val loss 0.2500  val accuracy 0.8750",
        "epoch 4/8  step 40  train loss 1.5000  test loss unknown  test accuracy 0.8750",
    ]


def test_an_evaluation_with_no_training_before_it(capsys: Capture) -> None:
    Console("psnr", epochs=1).metrics({**LINE, "split": "test", "psnr": 30.0})
    expected = "epoch 4/1  step 40  test loss 0.2500  test psnr 30.0000\n"
    assert capsys.readouterr().out == expected


def test_local_modules_are_not_shown(capsys: Capture) -> None:
    console = Console("accuracy", epochs=8)
    console.metrics({**LINE, "split": "test", "module": 0})
    console.metrics({**LINE, "split": "train", "module": 0, "loss": 9.0})
    assert capsys.readouterr().out == ""


def test_the_end(capsys: Capture) -> None:
    Console("accuracy", epochs=8).end(SUMMARY, Path("outputs/x"))
    first, last = capsys.readouterr().out.splitlines()
    assert first == (
        "completed after 40 steps in 12.3 s: 1234 samples/s in the steady state, bubble 0.1250, "
        "cuda:0, cuda:1"
    )
    assert last == "test accuracy 0.8750 in outputs/x"


def test_the_end_of_a_run_of_which_little_is_known(capsys: Capture) -> None:
    unknown = {
        **SUMMARY,
        "status": "interrupted",
        "emulated": True,
        "train": {"seconds": 0.0, "samples_per_second": None},
        "test": None,
        "pipeline": {"bubble_fraction": None},
    }
    Console("accuracy", epochs=8).end(unknown, Path("outputs/x"))
    first, last = capsys.readouterr().out.splitlines()
    assert first == (
        "interrupted after 40 steps in 0.0 s: unknown samples/s in the steady state, "
        "bubble unknown, emulated on cuda:0, cuda:1"
    )
    assert last == "test accuracy unknown in outputs/x"


def test_a_path_is_printed_as_it_is(capsys: Capture) -> None:
    """In one line, however long; nothing in it is taken for a colour or an emoji."""
    path = Path(f"/{'long' * 60}/[red]/:smile:/x")
    Console("accuracy", epochs=8).end(SUMMARY, path)
    assert capsys.readouterr().out.splitlines()[-1] == f"test accuracy 0.8750 in {path}"
