"""Composes configurations with Hydra, as plain data. Imports Hydra only when needed."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ppll_cli.config.commands import SEARCH_PATH
from ppll_cli.config.options import conf_dir
from ppll_cli.errors import ConfigError

GROUPS = (
    "model",
    "data",
    "partition",
    "schedule",
    "local",
    "fba",
    "optim",
    "transport",
    "recover",
    "tracker",
)
"""The groups that every run has. The program's other groups are presets."""

CONFIG = "config"
"""The name of the program's main configuration."""

LONGEST_NAME = 100
"""Largest number of characters of a run's name that become part of its folder's name."""


def register_resolvers() -> None:
    """Register the functions `pid` and `named`, which configurations call in folder names.

    `${pid:}` is the process ID. `${named:NAME}` is the end of a folder's name: "-my_run" for a run
    with the name "my run", and nothing for a run without a name.
    """
    from omegaconf import OmegaConf

    # With the process ID, runs that start in the same second get different folders. The ID is
    # cached, so that all processes of a sweep use one folder.
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("named", _named, replace=True)


def _named(name: object) -> str:
    return "" if name is None else "-" + re.sub(r"[^\w.+=@-]", "_", str(name))[:LONGEST_NAME]


def composed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved configuration, and the name of the option chosen in each group.

    If Hydra is initialised, as during a job, the user's own folders of YAML files are used. If not,
    they are used only if an override of `hydra.searchpath` names them.

    Raises:
        HydraException: Hydra cannot parse or apply an override, or there is no such option.
        OmegaConfBaseException: An interpolation cannot be resolved, or a key has no value.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from ppll_cli.config.interpolated import plain

    if not GlobalHydra.instance().is_initialized():
        register_resolvers()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return composed(overrides)
    # The user may have chosen another main configuration (--config-name).
    name = HydraConfig.get().job.config_name if HydraConfig.initialized() else None
    whole = compose(str(name or CONFIG), list(overrides), return_hydra_config=True)
    ours = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    return plain(ours), own_choices(whole.hydra.runtime.choices)


def options_given(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line that say where Hydra finds configuration files.

    `--config-dir FOLDER`, two arguments, is returned as `--config-dir=FOLDER`.
    """
    from hydra._internal.utils import get_args_parser

    given, _ = get_args_parser().parse_known_args(list(arguments))
    values = {f"--config-{name}": vars(given)[f"config_{name}"] for name in ("dir", "path", "name")}
    options = [f"{option}={value}" for option, value in values.items() if value is not None]
    return options + [each for each in arguments if each.startswith(f"{SEARCH_PATH}=")]


def overrides_of(hydra: Any, kind: str) -> list[str]:
    """Return the overrides with which Hydra composed a configuration. `${...}` stays unresolved.

    Args:
        hydra: The part `hydra` of the configuration.
        kind: "hydra" for overrides of keys in this part; "task" for all others.
    """
    from omegaconf import OmegaConf

    given: Any = OmegaConf.to_container(hydra.overrides[kind], resolve=False)
    return [str(each) for each in given]


def own_choices(choices: Mapping[Any, Any]) -> dict[str, str]:
    """Return the options chosen in this program's groups; leave out Hydra's own groups."""
    return {str(k): str(v) for k, v in choices.items() if "hydra" not in str(k)}


def check_choices(choices: Mapping[str, str]) -> None:
    """Check that the user has removed none of the `GROUPS`.

    Raises:
        ConfigError: A group was removed, by an override such as `~optim`.
    """
    for group in GROUPS:
        if group not in choices:
            problem = f"~{group} removes a group that every run needs"
            raise ConfigError(group, "", problem, "choose one of its options")
