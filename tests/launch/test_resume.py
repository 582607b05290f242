"""`resume=RUN_DIR` on the command line: run directories, and the classes that records name."""

import json
from pathlib import Path

import pytest

from ppll_cli.config.composition import GROUPS
from ppll_cli.config.moved import ADDED
from ppll_cli.errors import ConfigError
from ppll_cli.launch.resume import Recorded, recorded
from tests.conftest import compose_config, own_model
from tests.launch.recorded_runs import (
    EVIL,
    change,
    composed,
    differences,
    spoil,
    spoil_choice,
    write_config,
)


@pytest.mark.parametrize("overrides", [[], ["resume=null"], ["~resume"], ["seed=1"]])
def test_without_resume_no_run_is_resumed(overrides: list[str]) -> None:
    assert recorded(overrides) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"[1, 2]",
        b"{}",
        b"7",
        b"null",
        b'"choices"',
        b"\xff\xfe",
        b'{"choices": 1}',
        b'{"choices": {"model": "vit"}}',
    ],
)
def test_a_config_json_that_is_no_record_is_refused(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(
        ConfigError, match=r"resume=.*: it holds no config\.json of a run \(.+\); give"
    ):
        recorded([f"resume={folder}"])


@pytest.mark.parametrize("group", ["model", "transport", "tracker"])
@pytest.mark.parametrize(
    "choice",
    [None, 1, ["vit"], "", "../../evil", "/tmp/evil", "evil/../../x", "./x", "vit,vit", "vit\n"],
)
def test_a_recorded_option_that_is_a_path_is_refused(
    folder: Path, group: str, choice: object
) -> None:
    """With a path, Hydra would compose and interpolate a file that someone else put there."""
    spoil_choice(folder, group, choice)
    with pytest.raises(ConfigError, match=r"it holds no config\.json of a run"):
        recorded([f"resume={folder}"])


@pytest.mark.parametrize("choice", ["mine/vit", "vit.v2", "a/b-1/c_2"])
def test_a_recorded_option_may_be_in_a_subfolder_of_its_group(folder: Path, choice: str) -> None:
    spoil_choice(folder, "model", choice)
    before = recorded([f"resume={folder}"])
    assert before is not None
    assert before.choices["model"] == choice


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in ADDED])
def test_a_record_without_one_of_the_groups_is_refused(folder: Path, group: str) -> None:
    record = json.loads((folder / "config.json").read_text())
    del record[group]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"it holds no config\.json of a run"):
        recorded([f"resume={folder}"])


@pytest.mark.parametrize("version", [3, 99, 0, -1, "1", None, True])
def test_a_record_of_a_later_format_is_refused(folder: Path, version: object) -> None:
    spoil(folder, format=version)
    with pytest.raises(ConfigError, match=f"its config.json has format {version}, but this pro"):
        recorded([f"resume={folder}"])


def test_a_missing_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="resume='': is empty; give a run directory"):
        recorded(["resume="])
    for name in ("nothing", "file"):
        with pytest.raises(ConfigError, match="there is no such folder; give a run directory"):
            recorded([f"resume={tmp_path / name}"])
    with pytest.raises(ConfigError, match=r"it holds no config\.json of a run"):
        recorded([f"resume={tmp_path / 'empty'}"])


def test_a_run_directory_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match="cannot be read: permission denied; give a run dir"):
        recorded([f"resume={tmp_path}"])


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=here",
        "++hydra.run.dir=here",
        "hydra.output_subdir=.hydra",
        "hydra.sweep.dir=here",
        "hydra.mode=MULTIRUN",
    ],
)
def test_overrides_of_the_output_folder_are_refused(folder: Path, override: str) -> None:
    key, _, value = override.lstrip("+").partition("=")
    with pytest.raises(ConfigError) as error:
        recorded([override, f"resume={folder}"])
    problem = "a resumed run keeps its directory; leave this option out"
    assert str(error.value) == f"{key}={value}: {problem}"


NAMES = [
    "a b",
    "a'b",
    'a"b',
    "a\\b",
    "a\\",
    "a\\'b",
    "${seed}",
    "\\${seed}",
    "\\\\${",
    "${",
    "a,b=c",
]


@pytest.mark.parametrize("name", [*NAMES, "".join(NAMES)])
def test_a_run_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Hydra parses the name by its own grammar, and then OmegaConf parses it too."""
    before = Recorded(tmp_path / name, *composed())
    seen, _ = compose_config([*before.arguments([]), "+seen=${hydra:run.dir}"])
    assert seen["seen"] == str(tmp_path / name)


def test_a_relative_run_directory_is_found_in_the_current_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    before = recorded(["resume=run"])
    assert before is not None
    assert before.run_dir == folder


MAKERS = ("model", "data", "schedule", "local", "transport")


@pytest.mark.parametrize("group", MAKERS)
def test_a_users_class_is_imported_only_if_the_command_line_names_it(
    folder: Path, group: str
) -> None:
    record = json.loads((folder / "config.json").read_text())
    spoil(folder, **{group: {**record[group], "_target_": EVIL}})
    key = f"{group}._target_"
    with pytest.raises(ConfigError) as error:
        change(folder)
    assert str(error.value) == (
        f"{key}={EVIL}: the run directory names a class that is not part of ppll-run; such a class "
        f"is imported only if you give its name; give {key}={EVIL} on the command line"
    )
    assert change(folder, f"{key}={EVIL}")[0][group]["_target_"] == EVIL
    if group != "transport":  # this may be another class
        with pytest.raises(ConfigError, match=f"{key}=.*: the run was started with {EVIL}"):
            change(folder, f"{key}=another.Evil")


def test_a_class_that_an_override_replaces_need_not_be_named(folder: Path) -> None:
    spoil(folder, transport={"_target_": EVIL, "depth": 2})
    config, _ = change(folder, "transport=queue")
    assert EVIL not in str(config)


@pytest.mark.parametrize("target", ["ppll_cli.models.resnet.ResNet", None, 1, ["ppll_cli"], {}])
def test_a_class_that_the_recorded_option_does_not_name_is_refused(
    folder: Path, target: object
) -> None:
    record = json.loads((folder / "config.json").read_text())
    spoil(folder, model={**record["model"], "_target_": target})
    with pytest.raises(ConfigError, match=r"^model\._target_=.*imported only if you give its name"):
        change(folder)


def test_a_users_class_nested_in_an_option_is_refused(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    inside = {"deep": {"_target_": EVIL}}
    spoil(folder, model={**record["model"], "extra": inside})
    with pytest.raises(
        ConfigError, match=r"^model\.extra\.deep\._target_=evil_module\.Evil: the run"
    ):
        change(folder)


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_class_whose_key_was_added_can_be_named_again(folder: Path, plus: str) -> None:
    """No option has the key, so Hydra refused it without `+`, as the program prints it."""
    spoil(folder, model={**composed()[0]["model"], "extra": {"deep": {"_target_": EVIL}}})
    config = change(folder, f"{plus}model.extra.deep._target_={EVIL}")[0]
    assert config["model"]["extra"] == {"deep": {"_target_": EVIL}}


def test_a_users_class_is_named_again_without_its_arguments(folder: Path) -> None:
    """Keys that were added or removed are so again. They may be repeated."""
    model = own_model("Skipping", width=4)
    folder = write_config(folder, *model)
    assert differences(folder, model[0]) == {}
    assert differences(folder, *model) == {}
    with pytest.raises(ConfigError, match=r"model\.width=5: the run was started with 4"):
        change(folder, model[0], "+model.width=5")


@pytest.mark.parametrize(
    ("overrides", "again"),
    [
        (["tracker=tensorboard"], "tensorboard; add tracker=tensorboard"),
        (["tracker._target_=my.Own"], "my.Own; add tracker._target_=my.Own"),
    ],
)
def test_a_resumed_run_is_tracked_only_if_the_tracker_is_named_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: list[str], again: str
) -> None:
    """Otherwise a folder could decide where the records of a run are sent."""
    caplog.set_level("INFO")
    folder = write_config(tmp_path / "run", *overrides)
    config, choices = change(folder, "max_steps=9")
    assert config["tracker"] == {"_target_": "ppll_cli.observe.tracker.NoTracker"}
    assert choices["tracker"] == "none"
    assert caplog.messages == [f"this run was tracked by {again} to track it there again"]
    caplog.clear()
    config, choices = change(folder, *overrides)
    assert config["tracker"] == composed(*overrides)[0]["tracker"]
    assert choices["tracker"] == composed(*overrides)[1]["tracker"]
    assert caplog.messages == []


def test_resuming_an_untracked_run_logs_nothing_about_trackers(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    change(folder)
    assert caplog.messages == []
