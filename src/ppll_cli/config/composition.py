"""What Hydra composes, as plain data. Imports it only when it is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppll_cli.config.commands import short_path

CONFIG = "config"
"""The name of our main configuration."""


def composed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration, resolved, and the option chosen in each group; Hydra must be initialised."""
    from hydra import compose
    from omegaconf import OmegaConf

    from ppll_cli.config.interpolated import plain

    whole = compose(_main_config(), list(overrides), return_hydra_config=True)
    ours = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    return plain(ours), own_choices(whole.hydra.runtime.choices)


def _main_config() -> str:
    """The name of the configuration that the program runs with; the user may give another."""
    from hydra.core.hydra_config import HydraConfig

    name = HydraConfig.get().job.config_name if HydraConfig.initialized() else None
    return str(name or CONFIG)


def options_given(usual: Path) -> list[str]:
    """What this command line says of where configurations are, for the next command line.

    Args:
        usual: The folder of configuration groups where nothing else is said.
    """
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    given = []
    for source in config.runtime.config_sources:
        place = source.path if source.schema == "pkg" else short_path(Path(source.path))
        place = f"pkg://{place}" if source.schema == "pkg" else place
        if source.provider == "command-line":
            given.append(f"--config-dir={place}")
        elif source.provider == "main" and source.path != str(usual):
            given.append(f"--config-path={place}")
    if config.job.config_name not in (None, CONFIG):
        given.append(f"--config-name={config.job.config_name}")
    overrides = overrides_of(config, "hydra")
    where = [each for each in overrides if each.startswith("hydra.searchpath=")]
    return given + where


def overrides_of(hydra: Any, kind: str) -> list[str]:
    """The overrides on a command line, with interpolations as they were given.

    Args:
        hydra: Hydra's own configuration.
        kind: `hydra` for overrides of its own keys, `task` for the others.
    """
    from omegaconf import OmegaConf

    given: Any = OmegaConf.to_container(hydra.overrides[kind], resolve=False)
    return [str(each) for each in given]


def own_choices(choices: Mapping[Any, Any]) -> dict[str, str]:
    """The options chosen in our groups, without those of Hydra's own."""
    return {str(k): str(v) for k, v in choices.items() if "hydra" not in str(k)}
