"""The schedules benchmark, with small models and real processes."""

import json
import multiprocessing
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.job.course import TrainBatch
from ppll_cli.pipeline.instructions import End, Evaluate
from scripts.benchmarks import contenders, paced, schedules
from scripts.benchmarks.contenders import Case
from scripts.benchmarks.paced import EPOCH, Line, PacedCourse, Workers
from scripts.benchmarks.runs import RunFailedError
from tests.conftest import own_model

BATCH = 8
SMALL = ["data.size=8", f"batch_size={BATCH}", f"data.train_samples={EPOCH * BATCH}"]
SMALL += ["device=cpu"]
TINY = {
    "vit": ["model=vit", "model.dim=16", "model.depth=2", "optim.lr=1e-2", *SMALL],
    "resnet32": ["model=resnet32", "model.depth=8", "optim=sgd", "optim.lr=0.1", *SMALL],
}
ROWS = {
    "vit": ["ppll", "bound", "bound_in_turn", "torch_gpipe_m4", "gpipe_m4", "ddp", "bp_replicas"],
    "resnet32": ["ppll", "torch_gpipe_m4", "gpipe_m4"],
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use small models and short measurements. Write results and profiles to a temporary folder."""
    monkeypatch.setattr(contenders, "MODELS", TINY)
    monkeypatch.setattr(schedules, "SECONDS", 0.05)
    monkeypatch.setattr(schedules, "BUDGET_S", 0.0)
    monkeypatch.setattr(schedules, "LEAST_ROUNDS", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "rows"), ROWS.items(), ids=ROWS)
def test_speeds_and_conditions_are_written(model: str, rows: list[str]) -> None:
    schedules.main(["--models", model, "--rows", *rows])
    assert not multiprocessing.active_children()
    written = json.loads(schedules.RESULT.read_text())
    assert written["machine"]["cores"] >= 1
    assert written["conditions"]["local"] == "greedy"
    result = written["models"][model]
    speed = result["samples_per_second"]
    assert list(speed) == rows
    for name, (least, most) in result["spread"].items():
        assert 0 < least <= speed[name] <= most
    assert result["rounds"] == 2
    for key, (name, other) in schedules.RATIOS.items():
        if {name, other} <= speed.keys():
            assert result[key] == pytest.approx(speed[name] / speed[other])
        else:
            assert key not in result
    processes = {name: len(sizes) for name, sizes in result["peak_memory_bytes"].items()}
    assert processes == dict.fromkeys(rows, 2)
    assert [len(result["stages"][name]) for name in ("ppll", "gpipe_m4")] == [2, 2]
    assert_same_training(model, result)


def assert_same_training(model: str, result: dict[str, Any]) -> None:
    """Check that torch trains our model: after some steps, the losses differ only by rounding.

    BatchNorm gives other results if batches are split in another way. A ViT has no BatchNorm.
    """
    losses = result["warm_up_loss"]
    assert losses["torch_gpipe_m4"] == pytest.approx(losses["gpipe_m4"], rel=1e-4)
    if model == "vit":
        assert losses["ddp"] == pytest.approx(losses["gpipe_m4"], rel=1e-4)
        assert losses["bp_replicas"] == pytest.approx(losses["ddp"], rel=1e-4)
    assert losses["ppll"] != pytest.approx(losses["gpipe_m4"], rel=1e-3)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Case]:
    """Return a function that makes a case whose second stage fails in its third pass."""

    def make(act: str) -> Case:
        overrides = own_model("Faulty", unit="third", act=act)
        monkeypatch.setitem(contenders.MODELS, "faulty", [*SMALL, *overrides])
        return Case("faulty", 2, [])

    # By default a profile would be made, which takes many passes.
    monkeypatch.setitem(contenders.OURS, "ppll", ["schedule=ppll"])
    monkeypatch.setitem(contenders.OURS, "gpipe_m4", ["schedule=gpipe"])
    return make


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param("raise", "the third pass is too much", marks=pytest.mark.slow),
        ("kill", "killed by SIGKILL"),
    ],
)
def test_a_worker_that_dies_ends_the_benchmark(
    faulty: Callable[[str], Case], act: str, reason: str
) -> None:
    with pytest.raises(RunFailedError, match=f"^ppll: stage 1 .*{reason}"):
        schedules.measure(faulty(act), ["ppll"], 0.0, lambda _: None)
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "reason"),
    [("raise", "ArithmeticError: the third pass is too much"), ("kill", "the process is gone")],
)
def test_a_rank_that_dies_ends_the_benchmark(
    faulty: Callable[[str], Case], act: str, reason: str
) -> None:
    with pytest.raises(RunFailedError, match=r"^torch_gpipe_m4 failed\n") as failure:
        schedules.measure(faulty(act), ["torch_gpipe_m4"], 0.0, lambda _: None)
    assert reason in str(failure.value)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_silent_worker_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("vit", 2, [])
    (workers,), _ = case.contenders(["ppll"])
    assert isinstance(workers, Workers)
    workers.start()
    monkeypatch.setattr(paced, "LIMIT_S", 0.2)
    workers.lines[0].order = lambda spans: [1, 2]  # type: ignore[method-assign]
    with pytest.raises(RunFailedError, match=r"^ppll: no report for 0 s"):
        workers.warm_up()
    monkeypatch.undo()
    workers.stop()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("name", "devices", "reason"),
    [
        ("ddp", ("cuda:0", "cuda:0"), "NCCL refuses two ranks on one GPU"),
        pytest.param(
            *("bp_all_threads", ("cuda:0", "cuda:1"), "this row is for CPUs"),
            marks=pytest.mark.slow,
        ),
        (  # its preparation was refused, which ended the whole benchmark
            "ppll_recover",
            ("cuda:0", "cuda:1"),
            "on GPUs recover=stage needs deterministic=true, which no other row has",
        ),
    ],
)
def test_rows_that_cannot_be_measured_are_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str, devices: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setattr(Case, "devices", devices)
    assert Case("vit", 2, []).contenders([name]) == ([], {name: reason})


@pytest.mark.slow
def test_the_split_backward_of_torch_is_left_out_for_maps() -> None:
    """It failed in the midst of the benchmark: "Can't detach views in-place"."""
    name = "torch_zero_bubble_m4"
    (kept,), skipped = Case("vit", 2, []).contenders([name])
    kept.stop()
    assert (kept.name, skipped) == (name, {})
    assert "views" in Case("resnet32", 2, []).contenders([name])[1][name]


def test_ll_trains_the_same_modules_as_ppll() -> None:
    case = Case("resnet32", 2, [])
    assert case.job("ll").layout.modules == case.job("ppll").layout.modules
    assert case.job("ll").layout.stages == 1


def test_an_order_that_would_end_with_an_epoch_is_one_step_longer() -> None:
    received, sent = Pipe(duplex=False)
    line = Line(sent, last=0)
    assert line.order([EPOCH, 3, EPOCH - 4]) == [51, 54, 101]
    assert received.recv() == [51, 3, 47]
    assert line.order([1]) == [102]


def test_a_paced_course_follows_its_orders() -> None:
    received, sent = Pipe(duplex=False)
    for order in ([2, 1], [1], []):
        sent.send(order)
    course = PacedCourse(
        samples={"train": 12},
        batch_size=4,
        drop_last=False,
        evaluation_size=4,
        epochs=1,
        max_steps=None,
        eval_every=1,
        checkpoint_every=None,
        orders=received,
    )
    assert list(course.items(lambda: False)) == [
        TrainBatch(0, 0, 0, 4),
        TrainBatch(1, 0, 1, 4),
        Evaluate("train", 2, 0),
        TrainBatch(2, 0, 2, 4),
        Evaluate("train", 3, 1),
        TrainBatch(3, 1, 0, 4),
        Evaluate("train", 4, 1),
        End(4),
    ]


def test_the_help_says_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        schedules.main(["--help"])
    assert ended.value.code == 0
    assert "whole steps between two" in capsys.readouterr().out
