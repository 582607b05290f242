"""Text from an environment variable becomes a number where the key needs a number."""

from typing import Any

import pytest
from hydra import initialize_config_dir

from ppll_cli.config import settings
from ppll_cli.config.composition import composed, register_resolvers
from ppll_cli.config.options import conf_dir
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError


def read(*overrides: str) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return composed(overrides)[0]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "1e-3", 0.001),
        ("optim.lr", "1", 1),
        ("seed", "7", 7),
        ("max_steps", "12", 12),
        ("max_steps", "null", None),
        ("checkpoint.every", "5", 5),
        ("deterministic", "true", True),
        ("model.dim", "64", 64),
        ("schedule.microbatches", "2", 2),
        ("data.val_fraction", "0.25", 0.25),
        ("data.root", "2026", "2026"),  # the name of a folder
        ("device", "cpu", "cpu"),
    ],
)
def test_an_environment_variable_gets_the_type_of_the_key(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: Any
) -> None:
    monkeypatch.setenv("GIVEN", text)
    config = read(f"{key}=${{oc.env:GIVEN}}")
    found: Any = config
    for part in key.split("."):
        found = found[part]
    assert (found, type(found)) == (value, type(value))
    settings.parse(config)
    make("model", config["model"])


def test_a_name_that_consists_of_digits_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    config = read("tracker=wandb", "tracker.name=${oc.env:SLURM_JOB_ID}")
    assert config["tracker"]["name"] == "123"


@pytest.mark.parametrize("text", ["abc", "1.5", "true", "", "[1]"])
def test_text_that_is_not_a_number_of_the_right_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("GIVEN", text)
    with pytest.raises(ConfigError, match="seed"):
        settings.parse(read("seed=${oc.env:GIVEN}"))


@pytest.mark.parametrize("text", ["abc", "'1'"])
def test_quoted_text_on_the_command_line_is_not_a_number(text: str) -> None:
    with pytest.raises(ConfigError, match=f"seed={text.strip(chr(39))}: must be a valid integer"):
        settings.parse(read(f"seed={text}"))
