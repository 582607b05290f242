"""Runs that are found on disk, complete or damaged."""

import json
from pathlib import Path
from typing import Any

from ppll_cli.observe.conditions import seed
from ppll_cli.observe.runs import Evaluation, find
from tests.observe.compared_runs import line, write

CONFIG: dict[str, Any] = {"choices": {}}
"""A config.json with these keys marks a folder as a run."""


def test_runs_are_found_in_subfolders_in_order_of_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write(tmp_path / "sweep" / str(number), config=CONFIG)
    write(tmp_path / "sweep" / ".hydra", config=CONFIG)
    write(tmp_path / "sweep", refused=json.dumps({"job": 3, "overrides": ["gpus=0"]}) + "\n")
    found = find([tmp_path])
    assert [run.name for run in found] == ["sweep/1", "sweep/2", "sweep/3", "sweep/10"]
    assert [run.name for run in find([tmp_path / "sweep"])] == ["1", "2", "3", "10"]


def test_a_folder_may_have_a_digit_as_its_name_that_is_no_number(tmp_path: Path) -> None:
    # Python calls a superscript a digit, and refuses to convert it to a number.
    for name in ("²", "1"):
        write(tmp_path / name, config=CONFIG)
    assert [run.name for run in find([tmp_path])] == ["1", "²"]


def test_folders_inside_a_run_are_not_runs(tmp_path: Path) -> None:
    write(write(tmp_path / "run", config=CONFIG) / "wandb", config=CONFIG)
    assert len(find([tmp_path])) == 1


def test_the_status_of_each_run_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a", config=CONFIG, summary={"status": "completed", "schedule": "bp"})
    write(tmp_path / "b", config={"choices": {"schedule": "ll"}})
    write(tmp_path / "c", config=CONFIG, summary={"status": "failed", "error": "stage 1: it broke"})
    write(tmp_path / "d", config=CONFIG, summary="{ this was cut o")
    refused = {"job": 7, "overrides": ["gpus=0", "seed=1"], "error": "gpus=0: too few"}
    write(tmp_path, refused=json.dumps(refused) + "\n{ cut")
    refusal, *runs = find([tmp_path])
    assert refusal.name == "7"
    assert [run.status for run in runs] == ["completed", "running", "failed", "running"]
    assert [run.schedule for run in runs] == ["bp", "ll", "?", "?"]
    assert runs[2].error == "stage 1: it broke"
    assert (refusal.status, refusal.error) == ("refused", "gpus=0: too few")
    assert refusal.overrides == ["gpus=0", "seed=1"]


def test_evaluations_are_those_of_the_models_head(tmp_path: Path) -> None:
    metrics = [
        line(10, 0.9, "train", seconds=1.0),
        line(10, 0.5, seconds=2.0),
        line(10, 0.8, module=0, seconds=2.0),
        line(20, None, seconds=3.0),
        line(30, 0.75, seconds=4.0),
        '{"step": 40, "acc',
    ]
    (run,) = find([write(tmp_path / "run", config=CONFIG, metrics="".join(metrics))])
    assert run.evaluations == [Evaluation(10, 2.0, 0.5), Evaluation(30, 4.0, 0.75)]


def test_the_validation_metric_has_priority_over_the_test_metric(tmp_path: Path) -> None:
    metrics = line(10, 0.5) + line(10, 0.25, "val")
    (run,) = find([write(tmp_path / "run", config=CONFIG, metrics=metrics)])
    assert run.evaluations == [Evaluation(10, None, 0.25)]
    assert run.metric == "val accuracy"


def test_the_summary_can_name_the_metric(tmp_path: Path) -> None:
    summary = {"status": "completed", "schedule": "bp", "test": {"loss": 1.0, "psnr": 30.0}}
    (run,) = find([write(tmp_path / "run", summary=summary)])
    assert run.metric == "test psnr"


def test_times_of_a_run_that_an_older_program_started_are_unknown(tmp_path: Path) -> None:
    """Times in its later lines count from where the newer program resumed it."""
    metrics = line(10, 0.5) + line(20, 0.75, seconds=2.0)
    (run,) = find([write(tmp_path / "run", config=CONFIG, metrics=metrics)])
    assert run.evaluations == [Evaluation(10, None, 0.5), Evaluation(20, None, 0.75)]


def test_a_run_with_steps_after_its_summary_is_running(tmp_path: Path) -> None:
    summary = {"status": "interrupted", "schedule": "bp", "steps": 20}
    for name, step in (("ended", 20), ("resumed", 21)):
        metrics = line(step, 0.5, "train")
        write(tmp_path / name, config=CONFIG, summary=summary, metrics=metrics)
    assert [run.status for run in find([tmp_path])] == ["interrupted", "running"]


def test_config_json_files_of_other_programs_are_not_runs(tmp_path: Path) -> None:
    write(tmp_path / "other", config={"architectures": ["ViT"]})
    write(tmp_path / "list", config=[1])
    write(tmp_path / "ours" / "0", config=CONFIG)
    assert [run.name for run in find([tmp_path])] == ["ours/0"]


def test_options_that_are_not_names_are_ignored(tmp_path: Path) -> None:
    choices = {"schedule": ["bp"], "model": {}, "data": "digits", "local": 3}
    write(tmp_path / "0", config={"choices": choices})
    (run,) = find([tmp_path])
    assert run.configured("choices") == {"data": "digits"}
    assert run.schedule == "?"


def test_damaged_lines_of_refused_jobs_are_ignored(tmp_path: Path) -> None:
    lines = [{"job": "/etc"}, {"job": 0, "overrides": 3}, {"job": 1}]
    write(tmp_path, refused="".join(json.dumps(each) + "\n" for each in lines))
    assert [run.name for run in find([tmp_path])] == ["1"]


def test_true_and_false_are_not_numbers(tmp_path: Path) -> None:
    """In Python, true equals 1, so a damaged file gave numbers that no run had measured."""
    summary = {"status": "completed", "schedule": "bp", "steps": True, "seed": True}
    metrics = line(20, 0.5) + line(30, True) + line(40, 0.25, seconds=True)
    write(tmp_path / "0", config=CONFIG, summary=summary, metrics=metrics)
    write(tmp_path, refused='{"job": true}\n{"job": 2}\n')
    run, refused = find([tmp_path])
    assert (run.status, seed(run), refused.name) == ("completed", None, "2")
    assert run.evaluations == [Evaluation(20, None, 0.5), Evaluation(40, None, 0.25)]


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link to a parent folder would lead in a circle."""
    write(tmp_path / "0", config=CONFIG)
    (tmp_path / "latest").symlink_to(tmp_path / "0")
    (tmp_path / "again").symlink_to(tmp_path)
    assert [run.name for run in find([tmp_path])] == ["0"]
    (named,) = find([tmp_path / "latest"])  # but a folder that is named may be a link
    assert named.folder == tmp_path / "0"


def test_a_run_that_is_found_twice_is_listed_once(tmp_path: Path) -> None:
    for number in (0, 1):
        write(tmp_path / "sweep" / str(number), config=CONFIG)
    found = find([tmp_path / "sweep" / "1", tmp_path / "sweep"])
    assert [run.name for run in found] == ["sweep/1", "sweep/0"]


def test_a_refused_job_that_ran_later_is_not_listed_as_refused(tmp_path: Path) -> None:
    """A sweep may be run again in the same folder."""
    write(tmp_path, refused='{"job": 0}\n{"job": 1, "overrides": ["schedule=ll"]}\n')
    write(tmp_path / "0", config=CONFIG)
    found = find([tmp_path])
    assert [(run.name, run.status) for run in found] == [("0", "running"), ("1", "refused")]
    assert found[1].schedule == "ll"


def test_names_of_runs_in_two_folders_differ(tmp_path: Path) -> None:
    write(tmp_path / "one" / "0", config=CONFIG)
    write(tmp_path / "two", config=CONFIG)
    assert [run.name for run in find([tmp_path / "one", tmp_path / "two"])] == ["one/0", "two"]
    write(tmp_path / "three" / "0", config=CONFIG)
    both = find([tmp_path / "one" / "0", tmp_path / "three" / "0"])
    assert [run.name for run in both] == ["one/0", "three/0"]
