"""Replaces interpolations such as `${oc.env:LR}` by their values.

Text is converted to a number, a boolean or null where needed.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from operator import getitem
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from ppll_cli.config.overrides import at, parsed
from ppll_cli.config.settings import field_at
from ppll_cli.config.targets import checked, locate, parameters_of
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.nested import flat


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, in which interpolations are replaced by their values.

    An environment variable always has a text as its value, such as "0.1". If the key accepts no
    text, the text becomes what Hydra reads on a command line: here the number 0.1.

    Raises:
        OmegaConfBaseException: An interpolation cannot be resolved, or a key has no value.
    """
    given: Any = OmegaConf.to_container(config)
    found: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    for key, text in flat(given).items():
        value = at(found, key)
        if isinstance(text, str) and "${" in text and isinstance(value, str):
            *above, last = path = key.split(".")
            reduce(getitem, above, found)[last] = _as_wanted(value, path, found)
    return dict(found)


def _as_wanted(text: str, path: Sequence[str], config: Mapping[str, Any]) -> Any:
    value = _spelled(text)
    if isinstance(value, str):
        return text
    with suppress(KeyError, ValueError):  # raised if the key is unknown
        try:
            checked(path[-1], text, _annotation(path, config))
        except ConfigError:
            return value
    return text


def _spelled(text: str) -> Any:
    try:
        value = parsed([f"key={text}"])[0].value()
    except OverrideParseException:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _annotation(path: Sequence[str], config: Mapping[str, Any]) -> Any:
    place, kind = field_at(path)
    if len(place) == len(path):
        return kind
    group, option = path
    return parameters_of(locate(group, config[group]["_target_"]))[option]
