"""What Hydra and OmegaConf complain of, in one line of our own."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ppll_cli.errors import ConfigError


def explain(error: Exception, arguments: Sequence[str], conf_dir: Path) -> ConfigError:
    """The error that the user sees for an exception raised while a configuration was composed.

    Args:
        error: What Hydra, OmegaConf or a parser raised; the real complaint is often its cause.
        arguments: The command line.
        conf_dir: Where the configuration groups are, to find the name that was meant.
    """
    message = " ".join(str(error.__cause__ or error).split())
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    given = {key.lstrip("+~"): value for key, _, value in (o.partition("=") for o in overrides)}
    if option := re.search(r"Could not find '([^']*)/([^'/]*)'", message):
        group, name = option.groups()
        options = sorted(path.stem for path in (conf_dir / group).glob("*.yaml"))
        remedy = f"there are {', '.join(options)}" if options else "there are none"
        return ConfigError(group, name, "there is no such option", _meant(name, options) + remedy)
    if unknown := re.search(r"is not in struct full_key: (\S*)", message):
        key = unknown[1]
        keys = list(_keys(conf_dir))
        remedy = _meant(key, keys) + "--cfg job shows all keys"
        return ConfigError(key, given.get(key, ""), "there is no such key", remedy)
    message = message.partition(" See https://")[0].partition(" Config search path:")[0]
    for key, value in given.items():
        if key and key in message:
            return ConfigError(key, value, message)
    return ConfigError("arguments", " ".join(arguments), message, "see ppll-run --help")


def _meant(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}? " if near else ""


def _keys(conf_dir: Path) -> Iterator[str]:
    """All keys of the default configuration, with dots."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir), version_base="1.3"):
        config = OmegaConf.to_container(compose("config"), resolve=False)
    yield from _walk(config, "")


def _walk(node: Any, key: str) -> Iterator[str]:
    if key:
        yield key
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _walk(value, f"{key}.{name}" if key else str(name))
