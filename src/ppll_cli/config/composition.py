"""What Hydra composes, as plain data. Imports it only when it is needed."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppll_cli.config.commands import short_path
from ppll_cli.config.options import conf_dir

CONFIG = "config"
"""The name of our main configuration."""

LONGEST_NAME = 100
"""Characters of a run's name in its folder's."""


def register_resolvers() -> None:
    """What our configuration asks of OmegaConf.

    `pid` tells runs of one second apart; `named` is the end that a run's name gives its folder's.
    """
    from omegaconf import OmegaConf

    # It is asked once: the processes in which a launcher has a sweep's jobs run share its folder.
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("named", _named, replace=True)


def _named(name: object) -> str:
    """The end of a folder's name; a wrong name is refused only once Hydra has made the folder."""
    return "" if name is None else "-" + re.sub(r"[^\w.+=@-]", "_", str(name))[:LONGEST_NAME]


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


def options_given() -> list[str]:
    """What this command line says of where configurations are, for the next command line."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    given = []
    for source in config.runtime.config_sources:
        place = source.path if source.schema == "pkg" else short_path(Path(source.path))
        place = f"pkg://{place}" if source.schema == "pkg" else place
        if source.provider == "command-line":
            given.append(f"--config-dir={place}")
        elif source.provider == "main" and source.path != str(conf_dir()):
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
