"""`changes` finds the overrides that turn the defaults into a configuration."""

import shlex

import pytest
from hydra import initialize_config_dir

from ppll_cli.config.changes import changes
from ppll_cli.config.options import conf_dir
from tests.conftest import compose_config


def of(*overrides: str) -> list[str]:
    config, choices = compose_config(list(overrides))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return changes(config, choices)


def test_the_defaults_need_no_overrides() -> None:
    assert of() == []
    assert of("model=vit", "epochs=15") == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule=gpipe", "gpus=4", "schedule.microbatches=8"],
        ["model=resnet32", "local=dgl", "local.modules=8", "optim.lr=0.5"],
        ["local.cuts=[blocks.1,head]"],
        ["experiment=ppll_resnet32_k16s2", "gpus=3"],
        ["recipe=ppll_vit_base", "batch_size=8"],
        ["data.root='/some where/it is'", "checkpoint.every=10"],
        ["model._target_=my.Model", "~model.dim", "+model.width=3"],
        ["optim.clip_norm=null", "deterministic=true", "fba=on"],
        ["fba=on", "fba.features=2", "fba.fusion=add"],
    ],
)
def test_the_overrides_found_give_the_same_configuration(overrides: list[str]) -> None:
    found = of(*overrides)
    assert compose_config(shlex.split(" ".join(found)))[0] == compose_config(overrides)[0]
    assert len(found) <= len(overrides) + 1


def test_a_bank_with_resolved_defaults_is_named_once() -> None:
    """In a resumed run the defaults are resolved.

    `local.bank` follows `fba`, and cannot be given.
    """
    config, choices = compose_config(["fba=on"])
    bank = {**config["fba"], "features": "every", "fusion": "concatenate"}
    config |= {"fba": bank, "local": {**config["local"], "bank": bank}}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = changes(config, choices)
    assert found == ["fba=on", "local=fba", "fba.features=every", "fba.fusion=concatenate"]
    assert compose_config(found)[0]["local"]["bank"] == bank


def test_settings_of_a_preset_are_not_named_again() -> None:
    assert of("experiment=infopro_resnet32_k4", "seed=3") == [
        "experiment=infopro_resnet32_k4",
        "seed=3",
    ]


def test_a_changed_option_of_a_preset_is_named() -> None:
    assert of("experiment=infopro_resnet32_k4", "optim=adamw")[:2] == [
        "experiment=infopro_resnet32_k4",
        "optim=adamw",
    ]
