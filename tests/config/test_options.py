"""Messages name classes as users choose them on the command line."""

import re

import pytest

from ppll_cli.config.options import as_typed, conf_dir
from ppll_cli.config.settings import parse
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.observe.conditions import LOCAL, WHOLE
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.prepare.preparation import prepare
from tests.conftest import compose_config

SCHEDULES = sorted(path.stem for path in (conf_dir() / "schedule").glob("*.yaml"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_has_its_own_name(name: str) -> None:
    config, _ = compose_config([f"schedule={name}"])
    assert as_typed("schedule", config["schedule"]["_target_"]) == ("schedule", name)
    schedule: Schedule = make("schedule", config["schedule"])
    assert name in (LOCAL if schedule.local else WHOLE)  # comparisons use the same names


def test_a_class_without_a_single_option_is_named_by_its_path() -> None:
    vit = "ppll_cli.models.vit.ViT"  # `model=vit` and `model=vit_base` both name this class
    assert as_typed("model", vit) == ("model._target_", vit)
    assert as_typed("schedule", "my.Own") == ("schedule._target_", "my.Own")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["schedule=interleaved", "gpus=4", "model.depth=3"],
            "schedule=interleaved: needs 8 chunks, but the model has only 5 units",
        ),
        (
            [
                "schedule._target_=ppll_cli.pipeline.schedules.interleaved.Interleaved",
                *("schedule=1f1b", "+schedule.chunks=3", "gpus=3"),
            ],
            "schedule=interleaved: needs 9 chunks",
        ),
        (["fba=on", "local=dgl"], "fba=on: the local method, local=dgl, reads no feature bank"),
        (["model.dim=12", "model.heads=5"], "model.heads=5: does not divide model.dim=12"),
    ],
    ids=["option", "path", "local", "key"],
)
def test_messages_name_options_as_they_were_typed(given: list[str], message: str) -> None:
    small = ["data=synthetic", "data.size=8", "data.train_samples=16", "data.test_samples=8"]
    small += ["model.dim=16", "model.depth=6", "model.heads=2", "batch_size=8", "device=cpu"]
    config, _ = compose_config([*small, *given])
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        prepare(parse(config), "unused")
