"""Make the objects that a configuration names by `_target_`."""

import inspect
import json
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from ppll_cli.errors import ConfigError


def make(group: str, config: Mapping[str, Any]) -> Any:
    """Call a configured class with the other keys of its group.

    The class's annotations say which values are legal, and are checked strictly.

    Args:
        group: Name of the configuration group, for messages.
        config: `_target_`, the dotted path of the class, and its keyword arguments.

    Raises:
        ConfigError: The class cannot be imported, or does not take these arguments.
    """
    path = config.get("_target_")
    target = _locate(f"{group}._target_", path)
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    try:
        parameters, signature = _parameters(target), inspect.signature(target)
    except ValueError as error:  # what is written in C may have no signature
        raise ConfigError(f"{group}._target_", path, f"cannot be made: {error}") from None
    for key, value in arguments.items():
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise ConfigError(
                f"{group}.{key}", value, f"{path} has no such option", f"it has {known}"
            )
        arguments[key] = _checked(f"{group}.{key}", value, parameters[key])
    try:
        signature.bind(**arguments)
        return target(**arguments)
    except TypeError as error:
        if missing := re.search(r"missing .*argument.*?: '(\w+)'", str(error)):
            problem = f"{path} needs a value for it"
            raise ConfigError(f"{group}.{missing[1]}", "", problem) from None
        raise ConfigError(f"{group}._target_", path, f"cannot be made: {error}") from None


def _checked(key: str, value: Any, annotation: Any) -> Any:
    """The value as its annotation has it: a list where a tuple is wanted becomes one."""
    if annotation is inspect.Parameter.empty:
        return value
    try:
        adapter = TypeAdapter(annotation)
    except PydanticSchemaGenerationError:  # a class that only its own constructor can check
        return value
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problem = "; or ".join(describe(detail["msg"]) for detail in error.errors())
        raise ConfigError(key, value, problem) from None


def describe(message: str) -> str:
    """A message of pydantic as it reads in the middle of a sentence."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("valid array", "valid list")
    return message[0].lower() + message[1:]


def _locate(key: str, path: object) -> Any:
    if not isinstance(path, str) or "." not in path or path.startswith("."):
        raise ConfigError(key, path, "is not the dotted path of a class")
    module, _, name = path.rpartition(".")
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(key, path, f"cannot be imported ({error})") from None
    if not callable(target):
        raise ConfigError(key, path, "is not a class")
    return target


def _parameters(target: Any) -> dict[str, Any]:
    """Annotations by name; of base classes as well, where a constructor takes `**`."""
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    found: dict[str, Any] = {}
    for function in functions:
        if function is object.__init__:
            break
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
        for name, parameter in parameters.items():
            if name == "self" or parameter.kind in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                continue
            found.setdefault(name, hints.get(name, parameter.empty))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found
