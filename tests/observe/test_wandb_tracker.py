"""Records for wandb, read back from files that it writes offline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.observe import wandb_tracker
from ppll_cli.observe.tracker import Tracked
from ppll_cli.observe.wandb_tracker import Upload
from tests.conftest import Runner, resumed
from tests.observe.conftest import STAGES, SUMMARY, draw, line
from tests.observe.tracked_runs import CONFIG, WHAT, guard, messages, services, track, tracked
from tests.observe.wandb_file import recorded

TINY = ["data=synthetic", "data.size=8", "data.train_samples=24", "data.test_samples=6"]
TINY += ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=6", "epochs=2"]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, ("mine", ["one", "two"])),
        ({"name": "theirs", "tags": ["three"]}, ("theirs", ["three"])),
    ],
)
def test_a_runs_name_and_tags_are_the_trackers_defaults(
    tmp_path: Path, options: dict[str, Any], shown: tuple[str, list[str]]
) -> None:
    guarded = guard(**options)
    config = {**CONFIG, "name": "mine", "tags": ["one", "two"]}
    guarded.start(Tracked(tmp_path, config, {"schedule": "gpipe"}, "accuracy"))
    guarded.end(SUMMARY)
    (found,) = recorded(tmp_path)
    assert (found.run.display_name, [*found.run.tags]) == shown


def test_the_lowest_value_of_a_metric_is_kept_if_lower_is_better(tmp_path: Path) -> None:
    guarded = guard()
    guarded.start(tracked(tmp_path, lower_is_better=True))
    guarded.end(SUMMARY)
    (found,) = recorded(tmp_path)
    kept = found.metrics["test/accuracy"].summary
    assert (kept.min, kept.max) == (True, False)


def test_metrics_pictures_and_summary_are_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweeps" / "2026-11-25" / "12-00-00" / "0"
    folder.mkdir(parents=True)
    (folder.parent / "multirun.yaml").touch()
    draw(folder / "timeline.png")
    (folder / "samples").mkdir()
    draw(folder / "samples" / "0.found.png")
    guarded = guard(tags=["a", "b"], notes="slow")
    guarded.start(tracked(folder))
    last_step = {"lr": 0.1, "grad_norm": 2.5}
    guarded.metrics(line(3, samples_per_second=100.0, **last_step))
    guarded.metrics(line(3, module=0, split="test", loss=None))
    guarded.metrics(line(4, module=0, split="test", loss=None))
    guarded.metrics(line(4, module=0, **last_step))
    guarded.stages(4, STAGES, 2.5)
    guarded.end(SUMMARY)
    (found,) = recorded(folder)
    run = found.run
    assert (run.project, run.run_group, run.job_type) == ("p", "2026-11-25/12-00-00", "gpipe")
    assert (run.display_name, list(run.tags), run.notes) == (WHAT, ["a", "b"], "slow")
    assert run.run_id == json.loads((folder / "wandb-run.json").read_text())["id"]
    assert found.config["optim"] == {"lr": 0.1}
    assert found.config["choices"] == {"schedule": "gpipe", "model": "vit"}
    assert found.config["resolved"] == {"gpus": 2}

    first, second, _, local, third, last, sampled = found.rows
    assert (first["train/lr"], first["train/grad_norm"]) == (0.1, 2.5)
    assert local["module_0/train/grad_norm"] == 2.5
    assert "module_0/train/lr" not in local
    assert (first["step"], first["train/loss"], first["train/accuracy"]) == (3, 1.5, 0.5)
    assert first["train/samples_per_second"] == 100
    assert second["module_0/test/accuracy"] == 0.5
    assert "module_0/test/loss" not in second
    assert (third["step"], third["stage_0/memory_bytes"]) == (4, 1000)
    assert third["pipeline/bubble_fraction"] == 0.3125
    assert [row["train_seconds"] for row in (first, second, third)] == [1.5, 1.5, 2.5]
    assert 0 <= third["_timestamp"] - first["_timestamp"] < 60
    assert (last["step"], last["timeline/width"], last["timeline/height"]) == (9, 3, 2)
    assert (sampled["step"], sampled["samples/count"]) == (9, 1)
    assert sampled["samples/captions"] == ["0.found"]
    pictures = list(folder.glob("wandb/offline-*/files/media/images/timeline*.png"))
    assert [file.read_bytes() for file in pictures] == [(folder / "timeline.png").read_bytes()]

    assert found.metrics["*"].step_metric == "step"
    assert found.metrics["*"].options.step_sync
    assert found.metrics["test/accuracy"].step_metric == "step"
    assert found.metrics["test/accuracy"].summary.max
    assert found.metrics["val/accuracy"].summary.max
    assert found.metrics["module_0/test/accuracy"].summary.max
    assert found.metrics["module_0/test/accuracy"].step_metric == "step"
    assert not {"train/loss", "train/lr", "module_0/train/accuracy"} & found.metrics.keys()
    assert found.metrics["train_seconds"].options.hidden
    assert found.summary["test"] == {"accuracy": 0.75}
    assert found.summary["stages"] == {"0": {"index": 0, "units": "a, b"}}
    assert (found.exit_code, found.artifacts, found.statistics) == (0, [], 0)
    assert capfd.readouterr().out == ""
    assert services() == []


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("interrupted", 255)])
def test_the_exit_code_shows_how_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    monkeypatch.setitem(SUMMARY, "status", status)
    found = track(tmp_path, 1)
    assert (found.exit_code, found.summary["status"]) == (code, status)
    assert found.run.run_group == ""


def test_files_are_uploaded_on_request(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-9").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last").symlink_to("step-9")
    for name in ("checkpoints/step-9/stage-0.safetensors", "model.safetensors", "timeline.json"):
        (tmp_path / name).write_text(name)
    timeline, checkpoint = track(
        tmp_path, 1, upload=Upload(timeline=True, checkpoint=True)
    ).artifacts
    assert (timeline.type, checkpoint.type) == ("timeline", "checkpoint")
    assert [entry.path for entry in timeline.manifest.contents] == ["timeline.json"]
    entries = sorted(entry.path for entry in checkpoint.manifest.contents)
    assert entries == ["model.safetensors", "step-9/stage-0.safetensors"]


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path: Path) -> None:
    track(tmp_path, 1, 2)
    (folder,) = (path for path in (tmp_path / "wandb").glob("offline-run-*"))
    # The folder's name contains the second of its start, and both runs may start in the same
    # second.
    shutil.move(folder, folder.with_name("offline-run-20200101_000000-x"))
    track(tmp_path, 3, resumed=True)
    first, second = recorded(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert [row["step"] for row in second.rows] == [3]
    fresh = track(tmp_path / "other", 1, resumed=True)  # the run used another tracker before
    assert fresh.run.run_id != first.run.run_id


def test_the_comparison_of_a_sweep_is_its_own_run(tmp_path: Path) -> None:
    draw(tmp_path / "comparison.png")
    unusual = "a\nb\u2028c"  # the table once had a row for each of these lines
    text = f'schedule,speedup,note\nbp,1.0,\nppll,1.75,"{unusual}"\n'
    (tmp_path / "comparison.csv").write_text(text)
    guard().sweep(tmp_path, "2026-11-25/12-00-00")
    (found,) = recorded(tmp_path)
    assert (found.run.run_group, found.run.job_type) == ("2026-11-25/12-00-00", "comparison")
    assert found.rows[0]["comparison_picture/width"] == 3
    (table,) = tmp_path.glob("wandb/offline-*/files/media/table/comparison*.table.json")
    said = json.loads(table.read_text())
    assert said["columns"] == ["schedule", "speedup", "note"]
    assert said["data"] == [["bp", 1.0, None], ["ppll", 1.75, unusual]]
    assert services() == []


def test_wandb_disabled_and_older_modes_are_obeyed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", wandb_tracker.__name__)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    guarded = guard()
    guarded.start(tracked(tmp_path))
    guarded.end(SUMMARY)
    assert not list(tmp_path.glob("wandb/*run-*"))
    assert messages(caplog) == [
        "WANDB_DISABLED=true: nothing is sent to wandb; to send data, use tracker.mode=online"
    ]
    track(tmp_path, 1, mode="dryrun")  # a name that WANDB_MODE may have; keywords go first
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize(
    ("given", "disabled", "expected"),
    [
        (None, "", None),
        ("", "false", None),
        (None, "1", "disabled"),
        ("online", "1", "online"),
        ("run", "", "online"),
        ("dryrun", "", "offline"),
    ],
)
def test_the_mode_is_chosen_from_options_and_environment(
    monkeypatch: pytest.MonkeyPatch, given: str | None, disabled: str, expected: str | None
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", disabled)
    assert wandb_tracker._mode(given) == expected


def test_mode_disabled_records_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guarded = guard(mode="disabled")
    guarded.start(tracked(tmp_path))
    guarded.metrics(line(1))
    guarded.end(SUMMARY)
    assert not list(tmp_path.glob("wandb/*run-*"))
    assert messages(caplog) == []


def test_a_real_run_is_recorded(run: Runner) -> None:
    """The run is stopped and resumed."""
    result = run("tracker=wandb", "local.modules=2", "max_steps=4", *TINY)
    (found,) = recorded(result.run_dir)
    text = (result.run_dir / "metrics.jsonl").read_text()
    lines = [json.loads(each) for each in text.splitlines()]
    losses = [row.get("train/loss") for row in found.rows if "train/loss" in row]
    own = [it for it in lines if (it["split"], it["module"]) == ("train", None)]
    assert losses == [pytest.approx(it["loss"]) for it in own]
    assert any("module_0/test/accuracy" in row for row in found.rows)
    assert found.run.job_type == "ppll"
    assert found.config["model"]["depth"] == 2
    assert found.config["resolved"]["gpus"] == result.summary["gpus"]
    rate = result.summary["train"]["samples_per_second"]
    assert found.summary["train"].get("samples_per_second") == rate
    assert found.summary["test"]["accuracy"] == result.summary["test"]["accuracy"]
    resumed(result, "max_steps=6", "tracker=wandb")
    first, second = recorded(result.run_dir)
    assert first.run.run_id == second.run.run_id
    assert {row["step"] for row in second.rows} == {6}
    assert services() == []
