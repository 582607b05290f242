"""Records of older versions are read as this version would write them."""

from importlib import import_module

import pytest

from ppll_cli.config.moved import OPTIONS, TARGETS, choices_now, config_now
from ppll_cli.config.options import conf_dir


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
