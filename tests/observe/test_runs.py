"""Runs as they are found on disk, whole or not."""

import json
from pathlib import Path

from ppll_cli.observe.runs import Evaluation, find


def write(folder: Path, **files: object) -> Path:
    """A run directory: JSON for `config` and `summary`, text for `metrics` and `refused`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = folder / f"{name}.{'jsonl' if name in ('metrics', 'refused') else 'json'}"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def line(step: int, value: float | None, split: str = "test", **more: object) -> str:
    fields = {"step": step, "epoch": 1, "split": split, "module": None, "stage": 1, "loss": 0.5}
    return json.dumps({**fields, "accuracy": value, "samples_per_second": 1.0, **more}) + "\n"


def test_runs_lie_anywhere_and_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write(tmp_path / "sweep" / str(number), config={})
    write(tmp_path / "sweep" / ".hydra", config={})
    write(tmp_path / "sweep", refused=json.dumps({"job": 3, "overrides": ["gpus=0"]}) + "\n")
    found = find([tmp_path])
    assert [run.name for run in found] == ["3", "sweep/1", "sweep/2", "sweep/10"]
    assert [run.name for run in find([tmp_path / "sweep"])] == ["1", "2", "3", "10"]


def test_what_is_inside_a_run_is_no_run(tmp_path: Path) -> None:
    write(write(tmp_path / "run", config={}) / "wandb", config={})
    assert len(find([tmp_path])) == 1


def test_how_a_run_ended(tmp_path: Path) -> None:
    write(tmp_path / "a", config={}, summary={"status": "completed", "schedule": "bp"})
    write(tmp_path / "b", config={"choices": {"schedule": "ll"}})
    write(tmp_path / "c", config={}, summary={"status": "failed", "error": "stage 1: it broke"})
    write(tmp_path / "d", config={}, summary="{ this was cut o")
    refused = {"job": 7, "overrides": ["gpus=0", "seed=1"], "error": "gpus=0: too few"}
    write(tmp_path, refused=json.dumps(refused) + "\n{ cut")
    refusal, *runs = find([tmp_path])
    assert [run.status for run in runs] == ["completed", "running", "failed", "running"]
    assert [run.schedule for run in runs] == ["bp", "ll", "?", "?"]
    assert runs[2].error == "stage 1: it broke"
    assert (refusal.status, refusal.error) == ("refused", "gpus=0: too few")
    assert refusal.overrides == ["gpus=0", "seed=1"]


def test_evaluations_are_those_of_the_models_own_head(tmp_path: Path) -> None:
    metrics = [
        line(10, 0.9, "train", seconds=1.0),
        line(10, 0.5, seconds=2.0),
        line(10, 0.8, module=0, seconds=2.0),
        line(20, None, seconds=3.0),
        line(30, 0.75, seconds=4.0),
        '{"step": 40, "acc',
    ]
    (run,) = find([write(tmp_path / "run", config={}, metrics="".join(metrics))])
    assert run.evaluations == [Evaluation(10, 2.0, 0.5), Evaluation(30, 4.0, 0.75)]


def test_a_held_out_part_goes_before_the_test_set(tmp_path: Path) -> None:
    metrics = line(10, 0.5) + line(10, 0.25, "val")
    (run,) = find([write(tmp_path / "run", config={}, metrics=metrics)])
    assert run.evaluations == [Evaluation(10, None, 0.25)]


def test_two_folders_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "one" / "0", config={})
    write(tmp_path / "two", config={})
    assert [run.name for run in find([tmp_path / "one", tmp_path / "two"])] == ["one/0", "two"]
