"""Converts text from interpolations, such as `${oc.env:LR}`, to numbers where needed."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from ppll_cli.config.overrides import parsed
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import checked, locate, parameters_of
from ppll_cli.errors import ConfigError


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, with interpolations resolved.

    An interpolation may give a text to a key that accepts no text. The text then becomes the
    number, boolean or null that Hydra would read on a command line.
    """
    container: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    found: dict[str, Any] = container
    for path in list(_interpolated(config, ())):
        *above, last = path
        node: Any = found
        for key in above:
            node = node[key]
        if isinstance(node[last], str):
            node[last] = _as_wanted(node[last], path, found)
    return found


def _interpolated(node: DictConfig, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the key of each value that is an interpolation, as a tuple of names; skip lists."""
    for key in node:
        inner = node._get_node(key)
        path = (*above, str(key))
        if OmegaConf.is_interpolation(node, str(key)):
            yield path
        elif isinstance(inner, DictConfig) and not inner._is_none():
            yield from _interpolated(inner, path)


def _as_wanted(text: str, path: tuple[str, ...], config: Mapping[str, Any]) -> Any:
    value = _spelled(text)
    if isinstance(value, str):
        return text
    try:
        wanted = _annotation(path, config)
    except (KeyError, TypeError, ConfigError):
        return text  # the key or its class is unknown; the code that uses the key reports it
    try:
        checked(path[-1], text, wanted)
    except ConfigError:
        return value
    return text


def _spelled(text: str) -> Any:
    """Return the number, boolean or null that Hydra reads from a text, or else the text."""
    try:
        value = parsed([f"key={text}"])[0].value()
    except OverrideParseException:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def _annotation(path: tuple[str, ...], config: Mapping[str, Any]) -> Any:
    """Return the type of a key, from the field of a section or the argument of a constructor."""
    known: Any = Settings
    node: Any = config
    for key in path:
        if isinstance(known, type) and issubclass(known, BaseModel):
            known = known.model_fields[key].annotation
        else:
            known = parameters_of(locate(key, node["_target_"]))[key]
        node = node[key]
    return known
