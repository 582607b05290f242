"""The commands that a run prints. The tests read them as the program would read them."""

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from ppll_cli.config import settings
from ppll_cli.config.changes import changes
from ppll_cli.config.options import conf_dir
from ppll_cli.launch import advice
from ppll_cli.launch.resume import recorded
from ppll_cli.prepare.preparation import prepare
from tests.conftest import compose_config, pretend_devices
from tests.launch.recorded_runs import write_config

SMALL = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
SMALL += ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=8"]


def offered(*overrides: str, resumed: bool = False) -> str | None:
    """Return the command that a run with these overrides prints at its end to compare schedules."""
    config, choices = compose_config([*SMALL, *overrides])
    parsed = settings.parse(config)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = changes(config, choices)
    return advice.comparison(parsed, prepare(parsed, "unused"), [], found, resumed=resumed)


def arguments(line: str) -> list[str]:
    """Return the arguments of a command, as a shell splits them."""
    words = shlex.split(line)
    first = next(n for n, word in enumerate(words) if word == "--multirun" or "=" in word)
    return words[first:]


def start_each(line: str) -> list[str]:
    """Prepare each run of a sweep, given its command, and return the schedules of the runs."""
    option, listed, *others = arguments(line)
    assert option == "--multirun"
    names = listed.removeprefix("schedule=").split(",")
    for name in names:
        prepare(settings.parse(compose_config([*others, f"schedule={name}"])[0]), "unused")
    return names


ALL = ["bp", "ll", "gpipe", "ppll"]
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("devices", "overrides", "expected"),
    [
        slow(0, [], ALL),
        slow(0, ["gpus=3", "schedule=gpipe", "schedule.microbatches=2"], ALL),
        slow(0, ["gpus=1", "schedule=bp"], ALL),
        (0, ["replicas=2"], ALL),
        (0, ["local.modules=3", "objective=stages.1.compute_fraction"], ALL),
        (0, ["schedule=bp", "local.modules=1"], ["bp", "ll", "gpipe"]),
        (0, ["batch_size=2", "data.drop_last=true"], ["bp", "ll", "ppll"]),
        slow(0, ["model.pooling=mean", "data.classes=7"], ALL),
        slow(0, ["partition=manual", "partition.cuts=[head]"], ALL),
        (0, ["gpus=1", "schedule=bp", "partition=manual", "partition.cuts=[]"], None),
        (1, ["schedule=bp", "gpus=1", "device=cuda"], ["bp", "ll"]),
        slow(1, ["schedule=ppll", "gpus=1"], ["bp", "ll"]),
        (1, ["gpus=2", "oversubscribe=true"], ALL),
        slow(1, [], ALL),  # on CPU, like this run
        slow(2, [], ALL),
    ],
)
def test_each_job_of_the_comparison_command_can_start(
    monkeypatch: pytest.MonkeyPatch, devices: int, overrides: list[str], expected: list[str] | None
) -> None:
    pretend_devices(monkeypatch, devices)
    line = offered(*overrides)
    assert (None if line is None else start_each(line)) == expected


def test_the_comparison_command_keeps_settings_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_devices(monkeypatch, 1)
    line = offered("seed=7", "model.dropout=0.1")
    assert line is not None
    found = compose_config(arguments(line)[2:])[0]
    assert (found["seed"], found["model"]["dropout"]) == (7, 0.1)
    assert found["device"] == "cpu"  # by default, bp alone would use the CUDA device


def test_the_comparison_command_of_a_resumed_run_fixes_its_modules() -> None:
    line = offered("gpus=3", "resume=/some/run", resumed=True)
    assert line is not None
    assert not any(word.startswith("resume=") for word in arguments(line))
    assert "local.cuts=[blocks.1,head]" in arguments(line)
    start_each(line)


def test_the_comparison_command_quotes_special_characters() -> None:
    root = Path("/cache") / "a=b c,${x} $HOME 'é'"
    config, choices = compose_config([*SMALL, "device=cpu"])
    config["data"]["cache"] = str(root)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = changes(config, choices)
    parsed = settings.parse(config)
    line = advice.comparison(
        parsed, prepare(settings.parse(compose_config(SMALL)[0]), "x"), [], found, resumed=False
    )
    assert line is not None
    assert compose_config(arguments(line)[2:])[0]["data"]["cache"] == str(root)


@pytest.mark.parametrize("name", ["run", "a b=c", "it's [1],2", "${oc.env:HOME}", "é\"'x", "a\nb"])
def test_the_resume_command_finds_a_run_directory_of_any_name(tmp_path: Path, name: str) -> None:
    folder = write_config(tmp_path / name)
    line = advice.resume_command(folder, ["--config-dir=c d"], [], {}, {})
    option, *given = shlex.split(line.replace("\\012", "\n").replace("$'", "'"))[-2:]
    assert option == "--config-dir=c d"
    before = recorded(given)
    assert before is not None
    assert before.run_dir == folder
    compose_config(before.arguments(given))


def test_the_resume_command_repeats_the_tracker(tmp_path: Path) -> None:
    line = advice.resume_command(tmp_path, [], [], {}, {"tracker": "wandb"})
    assert arguments(line) == [f"resume={tmp_path}", "tracker=wandb"]


def test_the_resume_command_repeats_a_changed_length(tmp_path: Path) -> None:
    """Without it, the command ended the run at the step where it had been stopped."""
    recorded = {"epochs": 2, "max_steps": 7, "gpus": 2}
    line = advice.resume_command(tmp_path, [], [], recorded | {"max_steps": None}, {}, recorded)
    assert line.endswith(f"resume={tmp_path} max_steps=null")
    assert "max_steps" not in advice.resume_command(tmp_path, [], [], recorded, {}, recorded)


def test_the_resume_command_repeats_a_users_classes(tmp_path: Path) -> None:
    config = {"schedule": {"_target_": "my.Own"}, "model": {"_target_": "ppll_cli.models.vit.ViT"}}
    config["local"] = {"_target_": "my.Loss"}
    given = ["schedule._target_=my.Own", "+model.width=3"]
    known = advice.resume_command(tmp_path, [], given, config, {})
    assert arguments(known)[1:] == ["schedule._target_=my.Own"]  # the option names the other class
    for changed, choices in ((None, {}), (given, {"recipe": "mine"})):
        again = advice.resume_command(tmp_path, [], changed, config, choices)
        assert arguments(again)[1:] == ["schedule._target_=my.Own", "local._target_=my.Loss"]


@pytest.mark.parametrize(
    ("overrides", "start", "expected"),
    [
        (["max_steps=7"], 7, "give a larger max_steps"),
        ([], 10, "start a new run with more epochs, because the learning rate depends on "),
        (["optim.schedule=constant", "max_steps=11"], 10, "give more epochs"),
        (["optim.schedule=step", "max_steps=10"], 10, "give more epochs and a larger max_steps"),
    ],
)
def test_a_complete_run_gets_advice_that_helps(
    overrides: list[str], start: int, expected: str
) -> None:
    """A larger `max_steps` was recommended even if all epochs were done."""
    parsed = settings.parse(compose_config([*SMALL, "epochs=2", *overrides])[0])
    job = replace(prepare(parsed, "unused").job, start=start)
    found = advice.how_to_train_longer(parsed, job)
    assert found.startswith(expected)
    assert ("max_steps" in found) == ("max_steps" in expected)
