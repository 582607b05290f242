"""The configuration refuses wrong values, and derives values from others."""

import os
import re
from copy import deepcopy
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.config import sections, settings
from ppll_cli.config.options import conf_dir
from ppll_cli.config.settings import Settings, usable_cores
from ppll_cli.errors import ConfigError
from ppll_cli.leaves import machine
from tests.conftest import compose_config


@cache
def composed(*overrides: str) -> dict[str, Any]:
    return compose_config(list(overrides))[0]


def parse(changes: dict[str, object], *overrides: str) -> Settings:
    """Return the settings of a composed configuration after changes of its keys."""
    config = deepcopy(composed("batch_size=64", *overrides))
    for key, value in changes.items():
        *groups, name = key.split(".")
        section = config
        for group in groups:
            section = section[group]
        section[name] = value
    return settings.parse(config)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("gpus", 0, "must be greater than or equal to 1"),
        ("gpus", "two", "must be a valid integer"),
        ("gpus", 2.0, "must be a valid integer"),
        ("gpus", True, "must be a valid integer"),
        ("device", "gpu", "must be 'auto', 'cuda' or 'cpu'"),
        ("device", None, "must be 'auto', 'cuda' or 'cpu'"),
        ("oversubscribe", 1, "must be a valid boolean"),
        ("threads", 0, "must be greater than or equal to 1"),
        ("gpus", -1, "must be greater than or equal to 1"),
        ("seed", -1, "must be greater than or equal to 0"),
        ("seed", None, "must be a valid integer"),
        ("epochs", 0, "must be greater than or equal to 1"),
        ("epochs", 1e3, "must be a valid integer"),
        ("name", "", "must be at most 100 letters, digits or characters of _ . + = @ -"),
        ("name", "../x", "must be at most 100 letters, digits or characters of _ . + = @ -"),
        ("name", "-x", "must be at most 100 letters, digits or characters of _ . + = @ -"),
        ("name", "x" * 101, "must be at most 100 letters"),
        ("name", 3, "must be a valid string"),
        ("tags", "x", "must be a valid list"),
        ("max_steps", 0, "must be greater than or equal to 1"),
        ("max_minutes", 0, "must be greater than 0"),
        ("max_minutes", -5, "must be greater than 0"),
        ("max_minutes", inf, "must be a finite number"),
        ("max_minutes", nan, "must be a finite number"),
        ("max_minutes", "soon", "must be a valid number"),
        ("max_minutes", True, "must be a valid number"),
        ("batch_size", "x", "must be a valid integer"),
        ("batch_size", -8, "must be greater than or equal to 1"),
        ("eval_every", 0, "must be greater than or equal to 1"),
        ("log_every", 0, "must be greater than or equal to 1"),
        ("log_every", -3, "must be greater than or equal to 1"),
        ("log_every", 2.5, "must be a valid integer"),
        ("log_every", None, "must be a valid integer"),
        ("log_every", True, "must be a valid integer"),
        ("log_grad_norm", 1, "must be a valid boolean"),
        ("precision", "fp16", "must be 'fp32', 'tf32' or 'bf16'"),
        ("deterministic", "yes", "must be a valid boolean"),
        ("checkpoint.every", 0, "must be greater than or equal to 1"),
        ("checkpoint.every", "daily", "must be a valid integer"),
        ("checkpoint.keep", 0, "must be greater than or equal to 1"),
        ("optim.name", "adam", "must be 'sgd' or 'adamw'"),
        ("optim.lr", 0, "must be greater than 0"),
        ("optim.lr", nan, "must be a finite number"),
        ("optim.lr", inf, "must be a finite number"),
        ("optim.lr", "big", "must be a valid number"),
        ("optim.lr", None, "must be a valid number"),
        ("optim.weight_decay", -1, "must be greater than or equal to 0"),
        ("optim.momentum", 1.0, "must be less than 1"),
        ("optim.betas", [0.9], "at least 2 items"),
        ("optim.betas", [0.9, 0.99, 0.999], "at most 2 items"),
        ("optim.betas", 0.9, "must be a valid list"),
        ("optim.schedule", "linear", "must be 'constant', 'step', 'cosine' or 'cosine_by_epoch'"),
        ("optim.warmup_epochs", -1, "must be greater than or equal to 0"),
        ("optim.milestones", 3, "must be a valid list"),
        ("optim.gamma", 0, "must be greater than 0"),
        ("optim.clip_norm", 0, "must be greater than 0"),
        ("optim.clip_norm", nan, "must be a finite number"),
        ("optim.betas", [], "must have at least 2 items"),
        ("optim.nesterov", True, "needs optim.momentum above 0"),
        ("partition.name", "even", "must be 'uniform'"),
        ("partition.cuts", "head", "must be a valid list"),
        ("partition.cuts", ["head"], "applies only with partition=manual"),
        ("schedule.microbatches", 0, "must be greater than or equal to 1"),
        ("schedule.microbatches", 2.0, "must be a valid integer"),
        ("schedule.microbatches", True, "must be a valid integer"),
        ("schedule.microbatches", None, "must be a valid integer"),
        ("transport.depth", 0, "must be greater than or equal to 1"),
        ("transport.depth", True, "must be a valid integer"),
        ("transport.depth", "2", "must be a valid integer"),
        ("nosuch", 1, "there is no such key"),
        ("optim.nosuch", 1, "there is no such key"),
        ("checkpoint.nosuch", [1], "there is no such key"),
        ("data", "digits", "must be a valid dictionary"),
        ("model", None, "must be a valid dictionary"),
        ("checkpoint", 3, "must be a valid dictionary"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(key: str, value: object, problem: str) -> None:
    shown = {"True": "true", "None": "null"}.get(str(value), value)  # as on the command line
    with pytest.raises(ConfigError, match=rf"^{re.escape(f'{key}={shown}')}: ") as caught:
        parse({key: value})
    assert (caught.value.key, repr(caught.value.value)) == (key, repr(value))
    assert problem in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("optim.betas", [0.9, 1.0], 1.0),
        ("optim.milestones", [1, -1], -1),
        ("partition.cuts", ["head", 3], 3),
    ],
)
def test_a_wrong_value_in_a_list_is_named_with_the_lists_key(
    key: str, value: object, wrong: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({key: value})
    assert (caught.value.key, caught.value.value) == (key, wrong)


def test_two_wrong_values_in_a_list_have_one_message() -> None:
    with pytest.raises(ConfigError, match=r"^optim.betas=1: must be less than 1$"):
        parse({"optim.betas": [1, 1]})


def test_manual_partition_needs_cuts() -> None:
    with pytest.raises(ConfigError, match=r"^partition\.cuts=null: partition=manual needs"):
        parse({}, "partition=manual")
    assert parse({"partition.cuts": ["head"]}, "partition=manual").partition.cuts == ["head"]


def test_a_missing_key_is_named() -> None:
    config = deepcopy(composed())
    del config["optim"]["lr"]
    with pytest.raises(ConfigError) as caught:
        settings.parse(config)
    assert caught.value.key == "optim.lr"


def test_a_transport_of_ones_own_needs_a_depth() -> None:
    """The message said that `transport.depth=null` is no integer, but nobody had given null."""
    config = deepcopy(composed())
    del config["transport"]["depth"]
    with pytest.raises(ConfigError, match=r"^transport\.depth=: has no value, and needs one$"):
        settings.parse(config)


@pytest.mark.parametrize(
    "override",
    [
        f"{file.parent.name}={file.stem}"
        for group in ("optim", "partition", "schedule", "local", "transport", "tracker")
        for file in sorted((conf_dir() / group).glob("*.yaml"))
        if file.stem != "manual"
    ],
)
def test_every_option_of_the_program_is_accepted(override: str) -> None:
    parse({}, override)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "gpus": st.none() | st.integers(1, 4096),
            "seed": st.integers(0, 2**63 - 1),
            "epochs": st.integers(1),
            "max_steps": st.none() | st.integers(1),
            "batch_size": st.integers(64),
            "precision": st.sampled_from(["fp32", "tf32", "bf16"]),
            "optim.lr": st.floats(0, exclude_min=True, allow_infinity=False) | st.integers(1, 9),
            "optim.clip_norm": st.none() | st.floats(0, 1e9, exclude_min=True),
            "schedule.microbatches": st.integers(1, 64),
            "transport.depth": st.integers(1, 1024),
        },
    )
)
def test_right_values_are_kept(changes: dict[str, object]) -> None:
    found = parse(changes)
    for key, value in changes.items():
        group, _, name = key.partition(".")
        section = getattr(found, group)
        if not name:
            assert section == value
        else:
            assert (section[name] if isinstance(section, dict) else getattr(section, name)) == value


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [
        (8, "max 100000", 8),
        (8, "250000 100000", 2),
        (8, "50000 100000", 1),  # half a core counts as one
        (2, "800000 100000", 2),
        (8, "", 8),
        (8, "nonsense here", 8),
        (8, None, 8),  # the file does not exist
    ],
)
def test_usable_cores_are_limited_by_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, affinity: int, quota: str | None, cores: int
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("cores", "gpus", "threads", "expected"),
    [(8, None, None, 4), (8, 1, None, 8), (8, 3, None, 2), (2, 4, None, 1), (8, 4, 3, 3)],
)
def test_cores_are_divided_among_the_given_gpus(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    gpus: int | None,
    threads: int | None,
    expected: int,
) -> None:
    """The usable cores are shared among `gpus` as given, even for schedules on one device."""
    monkeypatch.setattr(settings, "usable_cores", lambda: cores)
    for schedule in ("ppll", "bp"):
        found = parse({"gpus": gpus, "threads": threads}, f"schedule={schedule}")
        assert found.threads_per_worker == expected


def test_a_feature_bank_selects_the_method_that_reads_it() -> None:
    assert "bank" not in composed()["local"]
    for overrides in (["fba=on"], ["local=fba", "fba=on"]):
        config = composed(*overrides)
        assert config["local"]["_target_"] == "ppll_cli.local.fba.FBA"
        assert config["local"]["bank"] == config["fba"]
        assert settings.parse(config).fba.enabled
    alone = settings.parse(composed("local=fba"))
    assert alone.local["bank"] == {"enabled": False}


@pytest.mark.parametrize("method", ["greedy", "dgl", "infopro"])
def test_a_feature_bank_is_refused_with_another_method(method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^fba=on: the local method, .*{method}.*; use local=fba"
    ) as e:
        settings.parse(composed("fba=on", f"local={method}"))
    assert "reads no feature bank" in str(e.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fba.features": "all"}, "fba.features=all: must be"),
        (
            {"fba.features": 0},
            "fba.features=0: must be 'every', 'stage_ends' or 'first', or must be greater than",
        ),
        ({"fba.fusion": "mean"}, "fba.fusion=mean: must be 'concatenate', 'add' or 'none'"),
        (
            {"fba.fusion": "add", "fba.shared_head": False},
            "fba.shared_head=false: applies only with fba.fusion=concatenate",
        ),
        ({"fba.join": "tail"}, "fba.join=tail: must be 'head' or 'input'"),
        ({"fba.trains": "head"}, "fba.trains=head: must be 'module' or 'probe'"),
        ({"fba.normalize": "yes"}, "fba.normalize=yes: must be a valid boolean"),
        *(
            ({"fba.join": "input", **change}, f"{problem}: applies only with fba.join=head")
            for change, problem in (
                ({"fba.shared_head": False}, "fba.shared_head=false"),
                ({"fba.trains": "probe"}, "fba.trains=probe"),
                ({"fba.normalize": True}, "fba.normalize=true"),
            )
        ),
        *(
            ({"fba.fusion": "none", key: value}, f"{key}={shown}: needs a bank")
            for key, value, shown in (
                ("fba.join", "input", "input"),
                ("fba.trains", "probe", "probe"),
                ("fba.normalize", True, "true"),
                ("fba.measure_zeroed", True, "true"),
            )
        ),
    ],
)
def test_wrong_options_of_the_feature_bank_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        parse(changes, "fba=on")


@pytest.mark.parametrize(
    ("given", "first", "features", "fusion"),
    [
        ({}, True, "every", "concatenate"),  # records of older runs lack these keys
        ({"features": None, "fusion": None}, False, "every", "concatenate"),
        ({"features": None, "fusion": None}, True, "first", "add"),
        ({"features": "every", "fusion": None}, True, "every", "concatenate"),
        ({"features": 2, "fusion": "add"}, True, 2, "add"),
        ({"features": None, "fusion": "concatenate"}, True, "first", "concatenate"),
        ({"features": None, "fusion": None, "shared_head": False}, True, "first", "concatenate"),
    ],
)
def test_unset_options_of_a_bank_depend_on_the_task(
    given: dict[str, object], first: bool, features: object, fusion: str
) -> None:
    bank = sections.FeatureBank.model_validate({"enabled": True, **given}).resolved(first)
    assert (bank.features, bank.fusion) == (features, fusion)


def test_records_of_older_runs_get_the_same_bank() -> None:
    config = composed("fba=on")
    new = ("join", "trains", "normalize", "measure_zeroed")
    old = {key: value for key, value in config["fba"].items() if key not in new}
    config |= {"fba": old, "local": {**config["local"], "bank": old}}
    assert settings.parse(config).fba == settings.parse(composed("fba=on")).fba


def test_options_of_a_disabled_feature_bank_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^fba\.features=3: applies only with fba=on$"):
        parse({"fba.features": 3}, "local=fba")
    with pytest.raises(ConfigError, match=r"^local\.bank=.*: is set by the group fba, and "):
        parse({"local.bank": {"enabled": True}}, "local=fba")
