"""Which settings may change when a run is resumed."""

import json
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.resume import FREE
from tests.launch.recorded_runs import STARTED, Config, change, differences, flat, write_config


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
        (["transport=queue"], {"transport._target_": "ppll_cli.transport.queue.QueueTransport"}),
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
    ("model.depth=3", "3: the run was started with 2;"),
    ("optim.lr=1", "1: the run was started with 0.002;"),
    ("batch_size=8", "8: the run was started with 64;"),
    ("local=dgl", "dgl: the run was started with greedy;"),
    ("local.modules=4", "4: the run was started with null;"),
    ("model=resnet32", "resnet32: the run was started with vit;"),
    ("fba=on", "on: the run was started with off;"),
    ("experiment=dgl_resnet32_k2", "dgl_resnet32_k2: the run was started with null;"),
    ("epochs=3", "3: the run was started with 15, and its learning rate depends on the number of"),
    ("+extra=1", "1: the run was started with no such key;"),
    ("~model.depth", ": the run was started with 2;"),
    ("~epochs", ": the run was started with 15;"),
    ("model._target_=tests.own_models.Idle", "tests.own_models.Idle: the run was started with pp"),
]

REFUSED_TOO = [
    # Slow cases: other keys, which are refused as those above
    ("transport.wire_dtype=bf16", "bf16: the run was started with null;"),
    ("model={depth:3}", "{depth:3}: the run was started with 2;"),
    ("optim={lr:1}", "{lr:1}: the run was started with 0.002;"),
    ("optim.clip_norm=1", "1: the run was started with null;"),
    ("optim.schedule=constant", "constant: the run was started with cosine;"),
    ("precision=bf16", "bf16: the run was started with fp32;"),
    ("deterministic=true", "true: the run was started with false;"),
    ("local.cuts=[blocks.1]", "[blocks.1]: the run was started with null;"),
    ("schedule=ll", "ll: the run was started with ppll;"),
    ("data=digits", "digits: the run was started with synthetic;"),
    ("data.val_fraction=0.5", "0.5: the run was started with 0.0;"),
    ("data.mixup=0.2", "0.2: the run was started with 0.0;"),
    ("data.cutmix=1", "1: the run was started with 0.0;"),
    ("optim=sgd", "sgd: the run was started with adamw;"),
    ("recipe=ppll_vit_base", "ppll_vit_base: the run was started with null;"),
    ("+model.extra=1", "1: the run was started with no such key;"),
    ("+hydraulic=1", "1: the run was started with no such key;"),
    ("~tracker", ": the run was started with none;"),
    ("~transport.depth", ": the run was started with 2;"),
]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        *(pytest.param(o, c, id=o) for o, c in REFUSED),
        *(pytest.param(o, c, id=o, marks=pytest.mark.slow) for o, c in REFUSED_TOO),
    ],
)
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
