"""`resume=RUN_DIR` on the command line: what may change, and what is refused or left alone."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config import settings
from ppll_cli.config.composition import GROUPS
from ppll_cli.config.moved import ADDED, OPTIONS, TARGETS, choices_now, config_now
from ppll_cli.config.options import conf_dir
from ppll_cli.config.settings import parse
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.launch.resume import FREE, Recorded, recorded
from tests.conftest import compose_config, own_model

STARTED = ["data=synthetic", "model.depth=2", "max_steps=7", "checkpoint.keep=5", "data.pad=1"]
Config = dict[str, Any]


@cache
def composed(*overrides: str) -> tuple[Config, dict[str, str]]:
    return compose_config([*STARTED, *overrides])


def write_config(folder: Path, *overrides: str, **changes: object) -> Path:
    """Write the files of a run directory that resuming needs."""
    config, choices = composed(*overrides)
    folder.mkdir(exist_ok=True)
    record = {**config, "threads": 3, "choices": choices, "format": 1, **changes}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "ppll-run.log").write_text("what was before\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_config(tmp_path / "run")


def change(folder: Path, *overrides: str) -> tuple[Config, dict[str, str]]:
    """Return the configuration and choices with which a run resumes."""
    given = [f"resume={folder}", *overrides]
    before = recorded(given)
    assert before is not None
    return before.changed(*compose_config(before.arguments(given)), given)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with a single level, whose keys contain dots."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def differences(folder: Path, *overrides: str) -> dict[str, Any]:
    """Return the keys and values that differ from those with which the run was started."""
    record = json.loads((folder / "config.json").read_text())
    config, _ = change(folder, *overrides)
    assert config.pop("resume") == str(folder)
    for key in ("choices", "format", "resume"):
        record.pop(key, None)
    before, after = flat(record), flat(config)
    assert before.keys() == after.keys()
    return {key: value for key, value in after.items() if value != before[key]}


# Sources of the configuration


@pytest.mark.parametrize("overrides", [[], ["resume=null"], ["~resume"], ["seed=1"]])
def test_without_resume_no_run_is_resumed(overrides: list[str]) -> None:
    assert recorded(overrides) is None


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        STARTED,
        ["model=vit", "seed=0", "optim=adamw", "optim.lr=0.002", "local.modules=null"],
        ["model={depth:2}", "checkpoint={keep:5}", "++batch_size=64"],
        ["fba=off", "threads=3", "hydra.verbose=true"],
    ],
)
def test_repeated_settings_are_no_changes(
    folder: Path, caplog: pytest.LogCaptureFixture, overrides: list[str]
) -> None:
    assert differences(folder, *overrides) == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["gpus=4"], {"gpus": 4}),  # the number of threads stays
        (["max_steps=null"], {"max_steps": None}),
        (["name=mine", "tags=[a,b]"], {"name": "mine", "tags": ["a", "b"]}),
        (["max_steps=9", "seed=0"], {"max_steps": 9}),
        (["recompute=true"], {"recompute": True}),
        (["max_minutes=55"], {"max_minutes": 55}),
        (["log_every=1", "log_grad_norm=true"], {"log_every": 1, "log_grad_norm": True}),
        (["device=cpu", "oversubscribe=true"], {"device": "cpu", "oversubscribe": True}),
        (["eval_every=1", "progress_limit=5"], {"eval_every": 1, "progress_limit": 5}),
        (["checkpoint.every=3"], {"checkpoint.every": 3}),
        (["checkpoint={every:3}"], {"checkpoint.every": 3}),  # `keep` is not reset
        (["transport.depth=4"], {"transport.depth": 4}),
        (["transport={depth:4}"], {"transport.depth": 4}),
        (
            ["transport=queue"],
            {"transport._target_": "ppll_cli.transport.queue.QueueTransport"},
        ),
        (["partition=flops"], {"partition.name": "flops"}),
        (
            ["partition.cuts=[blocks.1]", "partition=manual"],
            {"partition.name": "manual", "partition.cuts": ["blocks.1"]},
        ),
        (["data.root=/tmp", "data.download=false"], {"data.root": "/tmp", "data.download": False}),
        (["gpus=${batch_size}"], {"gpus": 64}),
    ],
)
def test_resume_applies_allowed_changes(
    folder: Path, overrides: list[str], expected: Config
) -> None:
    assert differences(folder, *overrides) == expected


def test_a_run_older_than_drop_path_resumes_without_it(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    assert record["model"].pop("drop_path") == 0.0
    (folder / "config.json").write_text(json.dumps(record))
    config, _ = change(folder, "max_steps=9")
    assert make("model", settings.parse(config).model).drop_path == 0.0
    with pytest.raises(ConfigError, match=r"model.drop_path=0.1: the run was started with no such"):
        change(folder, "model.drop_path=0.1")


def test_a_run_older_than_recompute_resumes_with_or_without_it(folder: Path) -> None:
    """An older record lacks this key. Its value does not change what is trained."""
    record = json.loads((folder / "config.json").read_text())
    assert record.pop("recompute") is False
    (folder / "config.json").write_text(json.dumps(record))
    config, _ = change(folder)
    assert settings.parse(config).recompute is False
    for value in (False, True):
        config, _ = change(folder, f"recompute={str(value).lower()}")
        assert settings.parse(config).recompute is value


@pytest.mark.parametrize("value", ["2", "null"])
def test_resume_warns_about_another_number_of_threads(
    folder: Path, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    assert differences(folder, f"threads={value}") == {"threads": json.loads(value)}
    assert f"threads={value}: sums may be computed in another order than before" in caplog.text


def test_changed_options_replace_the_recorded_choices(folder: Path) -> None:
    _, choices = change(folder, "partition=params", "transport=queue", "model=vit")
    assert (choices["partition"], choices["transport"]) == ("params", "queue")
    assert (choices["model"], choices["data"]) == ("vit", "synthetic")


def older(folder: Path) -> Config:
    """Change a record to that of an older program with `transport=naive`, and return it."""
    record: Config = json.loads((folder / "config.json").read_text())
    target = "ppll_cli.transport.naive.NaiveTransport"
    record["transport"] = {"_target_": target, "depth": 3}
    record["choices"] |= {"transport": "naive"}
    (folder / "config.json").write_text(json.dumps(record))
    return record


def test_a_run_older_than_mixup_and_cutmix_resumes_without_them(tmp_path: Path) -> None:
    """The record of the run lacks these keys, and it resumes without mixing."""
    folder = write_config(tmp_path / "run")
    record: Config = json.loads((folder / "config.json").read_text())
    for key in ("mixup", "cutmix"):
        del record["data"][key]
    (folder / "config.json").write_text(json.dumps(record))
    config, _ = change(folder)
    assert config["data"] == record["data"]
    assert not make("data", config["data"]).mixed
    with pytest.raises(ConfigError, match=r"^data\.mixup=0\.2: the run was started with no such"):
        change(folder, "data.mixup=0.2")


def test_a_run_with_the_removed_transport_naive_resumes_with_queue(folder: Path) -> None:
    """The run resumes with queues, and keeps the depth of its channels."""
    before = older(folder)
    config, choices = change(folder)
    assert config["transport"] == {
        "_target_": "ppll_cli.transport.queue.QueueTransport",
        "depth": 3,
    }
    assert choices["transport"] == "queue"
    for key in {*before} - {"transport", "choices", "format", "resume"}:
        assert config[key] == before[key]
    config, choices = change(folder, "transport=ring")
    assert config["transport"]["_target_"] == "ppll_cli.transport.ring.RingTransport"
    assert choices["transport"] == "ring"


def test_a_key_that_an_older_record_lacks_gets_its_default(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    for key in ("log_every", "log_grad_norm"):
        del record[key]
    (folder / "config.json").write_text(json.dumps(record))
    settings = parse(change(folder)[0])
    assert (settings.log_every, settings.log_grad_norm) == (10, False)
    assert parse(change(folder, "log_every=3")[0]).log_every == 3


def test_every_moved_name_maps_to_an_existing_one() -> None:
    for target in TARGETS.values():
        module, _, name = target.rpartition(".")
        assert isinstance(getattr(import_module(module), name), type)
        assert target not in TARGETS
    for (group, before), now in OPTIONS.items():
        options = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
        assert now in options
        assert before not in options


def test_moved_names_are_replaced_anywhere_in_a_configuration() -> None:
    (before, now), *_ = TARGETS.items()
    config = {"a": {"b": [{"_target_": before, "x": before}]}, "_target_": 1, "c": None}
    expected = {"a": {"b": [{"_target_": now, "x": before}]}, "_target_": 1, "c": None}
    assert config_now(config) == expected
    assert choices_now({"transport": "naive", "model": "naive"}) == {
        "transport": "queue",
        "model": "naive",
    }


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"name": "off", "every": 16}, {"name": "off", "every": None}),  # the older default
        ({"name": "off", "every": 4}, {"name": "off", "every": 4}),
        ({"name": "stage", "every": 16}, {"name": "stage", "every": 16}),
        ("no group", "no group"),
    ],
)
def test_an_unused_default_of_older_versions_is_forgotten(before: object, now: object) -> None:
    assert config_now({"recover": before, "every": 16}) == {"recover": now, "every": 16}


def test_resume_uses_the_recorded_values_of_an_experiment(tmp_path: Path) -> None:
    """The record has the experiment's values of that time, and the changes of the command line."""
    name = "experiment=dgl_resnet32_k2"
    folder = write_config(tmp_path / "run", name, "optim.lr=0.5")
    assert differences(folder) == {}
    assert differences(folder, name, "optim.lr=0.5", "gpus=1") == {"gpus": 1}


REFUSED = [
    # Changes, and the start of each message after the key
    ("seed=5", "5: the run was started with 0;"),
    ("replicas=2", "2: the run was started with 1;"),
    ("transport.wire_dtype=bf16", "bf16: the run was started with null;"),
    ("model.depth=3", "3: the run was started with 2;"),
    ("model={depth:3}", "{depth:3}: the run was started with 2;"),
    ("optim.lr=1", "1: the run was started with 0.002;"),
    ("optim={lr:1}", "{lr:1}: the run was started with 0.002;"),
    ("optim.clip_norm=1", "1: the run was started with null;"),
    ("optim.schedule=constant", "constant: the run was started with cosine;"),
    ("batch_size=8", "8: the run was started with 64;"),
    ("precision=bf16", "bf16: the run was started with fp32;"),
    ("deterministic=true", "true: the run was started with false;"),
    ("local=dgl", "dgl: the run was started with greedy;"),
    ("local.modules=4", "4: the run was started with null;"),
    ("local.cuts=[blocks.1]", "[blocks.1]: the run was started with null;"),
    ("schedule=ll", "ll: the run was started with ppll;"),
    ("model=resnet32", "resnet32: the run was started with vit;"),
    ("data=digits", "digits: the run was started with synthetic;"),
    ("data.val_fraction=0.5", "0.5: the run was started with 0.0;"),
    ("data.mixup=0.2", "0.2: the run was started with 0.0;"),
    ("data.cutmix=1", "1: the run was started with 0.0;"),
    ("optim=sgd", "sgd: the run was started with adamw;"),
    ("fba=on", "on: the run was started with off;"),
    ("experiment=dgl_resnet32_k2", "dgl_resnet32_k2: the run was started with None;"),
    ("recipe=ppll_vit_base", "ppll_vit_base: the run was started with None;"),
    ("epochs=3", "3: the run was started with 15, and its learning rate depends on it;"),
    ("+extra=1", "1: the run was started with no such key;"),
    ("+model.extra=1", "1: the run was started with no such key;"),
    ("+hydraulic=1", "1: the run was started with no such key;"),
    ("~model.depth", ": the run was started with 2;"),
    ("~epochs", ": the run was started with 15;"),
    ("~tracker", ": the run was started with none;"),
    ("~transport.depth", ": the run was started with 2;"),
    ("model._target_=tests.own_models.Idle", "tests.own_models.Idle: the run was started with pp"),
]


@pytest.mark.parametrize(("override", "complaint"), REFUSED, ids=[o for o, _ in REFUSED])
def test_a_change_of_what_is_trained_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture, override: str, complaint: str
) -> None:
    """The change is refused even if other, allowed changes are given with it."""
    with pytest.raises(ConfigError) as error:
        change(folder, "threads=2", override, "gpus=4")
    key = override.lstrip("+~").partition("=")[0]
    keys = [key, f"{key}.depth", f"{key}.lr"]  # for a dictionary, the message may name a key in it
    assert any(str(error.value).startswith(f"{key}={complaint}") for key in keys)
    assert all(key in str(error.value) for key in FREE)
    assert "\n" not in str(error.value)
    assert not caplog.records  # nothing may be logged, because the log file is that of the run


def test_epochs_may_change_if_the_learning_rate_does_not_depend_on_them(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "run", "optim.schedule=step")
    assert differences(folder, "epochs=30") == {"epochs": 30}


@pytest.mark.parametrize("override", ["+partition.deep.est=1", "+gpus.of=1", "+tracker.extra=1"])
def test_resume_leaves_unknown_keys_in_free_groups_to_later_checks(
    folder: Path, override: str
) -> None:
    """A later check refuses keys that do not exist, as in a new run."""
    config, _ = change(folder, override)
    assert flat(config)[override.lstrip("+").partition("=")[0]] == 1


# Run directories


def spoil(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, **changes}))


def spoil_choice(folder: Path, group: str, choice: object) -> None:
    record = json.loads((folder / "config.json").read_text())
    spoil(folder, choices={**record["choices"], group: choice})


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
    with pytest.raises(ConfigError, match=f"its config.json has format {version}, and this pro"):
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
    assert str(error.value) == f"{key}={value}: a resumed run keeps its directory; leave it out"


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


# Classes of users

EVIL = "evil_module.Evil"
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
        f"{key}={EVIL}: the run directory names a class that is not part of ppll-run, which is "
        f"imported only if you name it too; give {key}={EVIL} on the command line"
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
    with pytest.raises(ConfigError, match=r"^model\._target_=.*imported only if you name it too"):
        change(folder)


def test_a_users_class_nested_in_an_option_is_refused(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    inside = {"deep": {"_target_": EVIL}}
    spoil(folder, model={**record["model"], "extra": inside})
    with pytest.raises(
        ConfigError, match=r"^model\.extra\.deep\._target_=evil_module\.Evil: the run"
    ):
        change(folder)


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
