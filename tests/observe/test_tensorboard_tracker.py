"""Records for TensorBoard, read back from event files by its own reader."""

import json
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.observe.tensorboard_tracker import TensorboardTracker
from ppll_cli.observe.tracker import Guarded, Tracked
from tests.conftest import Runner, resumed
from tests.observe.conftest import STAGES, SUMMARY, draw, line

TINY = ["data=synthetic", "data.size=8", "data.train_samples=24", "data.test_samples=6"]
TINY += ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=6", "epochs=2"]


def read(folder: Path) -> Any:
    """Return everything that the event files in a folder hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(folder: Path, key: str) -> list[tuple[int, float]]:
    return [(it.step, it.value) for it in read(folder).Scalars(key)]


def text(events: Any, key: str) -> str:
    (said,) = events.Tensors(f"{key}/text_summary")
    return str(said.tensor_proto.string_val[0].decode())


def guard(folder: Path | None = None) -> Guarded:
    given = None if folder is None else str(folder)
    return Guarded(TensorboardTracker(dir=given), "tensorboard")


def tracked(run_dir: Path, **changes: Any) -> Tracked:
    return Tracked(run_dir, {"seed": 7}, {"schedule": "ppll"}, "accuracy", **changes)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_metrics_pictures_and_summary_are_recorded(tmp_path: Path, elsewhere: bool) -> None:
    draw(tmp_path / "timeline.png")
    folder = tmp_path / "mine" if elsewhere else None
    guarded = guard(folder)
    guarded.start(tracked(tmp_path))
    guarded.metrics(line(3, samples_per_second=100.0, lr=0.5, grad_norm=2.5))
    guarded.metrics(line(3, module=0, split="test", loss=None))
    guarded.stages(4, STAGES, 2.5)
    guarded.end(SUMMARY)
    events = read(folder or tmp_path / "tensorboard")
    keys = events.Tags()["scalars"]
    assert {"train/loss", "train/samples_per_second", "module_0/test/accuracy"} <= {*keys}
    assert "module_0/test/loss" not in keys
    (loss,) = events.Scalars("train/loss")
    (memory,) = events.Scalars("stage_0/memory_bytes")
    for key, value in (("train/lr", 0.5), ("train/grad_norm", 2.5)):
        assert scalars(folder or tmp_path / "tensorboard", key) == [(3, value)]
    assert (loss.step, loss.value, memory.step, memory.value) == (3, 1.5, 4, 1000)
    assert 0 <= memory.wall_time - loss.wall_time < 60
    (picture,) = events.Images("timeline")
    assert (picture.step, picture.width, picture.height) == (9, 3, 2)
    config = json.loads(text(events, "config"))
    assert (config["seed"], config["choices"]) == (7, {"schedule": "ppll"})
    assert "    test.accuracy: 0.75" in text(events, "summary").splitlines()


def test_steps_after_the_checkpoint_are_hidden_on_resuming(tmp_path: Path) -> None:
    guarded = guard()
    guarded.start(tracked(tmp_path))
    for step in (1, 2, 3, 4):
        guarded.metrics(line(step, loss=1.0))
    guarded.end(SUMMARY)
    guarded = guard()
    guarded.start(tracked(tmp_path, step=2, resumed=True))
    guarded.metrics(line(3, loss=2.0))
    guarded.end(SUMMARY)
    expected = [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert scalars(tmp_path / "tensorboard", "train/loss") == expected


def test_the_comparison_of_a_sweep_is_recorded(tmp_path: Path) -> None:
    draw(tmp_path / "comparison.png")
    (tmp_path / "comparison.csv").write_text("schedule,speedup\nbp,1.0\n")
    guard().sweep(tmp_path, "2026-11-25/12-00-00")
    events = read(tmp_path / "tensorboard")
    assert events.Images("comparison")[0].width == 3
    assert text(events, "comparison") == "    schedule,speedup\n    bp,1.0"


def test_a_real_run_is_recorded(run: Runner) -> None:
    """The run is stopped and resumed."""
    result = run("tracker=tensorboard", "local.modules=2", "max_steps=4", *TINY)
    ((step, value),) = scalars(result.run_dir / "tensorboard", "test/accuracy")
    assert step == 4
    assert value == pytest.approx(result.summary["test"]["accuracy"])
    resumed(result, "max_steps=6", "tracker=tensorboard")
    steps = [step for step, _ in scalars(result.run_dir / "tensorboard", "module_0/test/loss")]
    assert steps == [4, 6]
