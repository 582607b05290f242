"""Make the objects that a configuration names by `_target_`."""

import inspect
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from ppll_cli.errors import ConfigError, PpllError
from ppll_cli.leaves.names import meant

log = logging.getLogger(__name__)


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
    target = locate(f"{group}._target_", path)
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    try:
        parameters, signature = parameters_of(target), inspect.signature(target)
    except ValueError as error:  # what is written in C may have no signature
        raise ConfigError(f"{group}._target_", path, f"cannot be made: {error}") from None
    for key, value in arguments.items():
        if key not in parameters:
            remedy = meant(key, parameters) + f"it has {', '.join(parameters) or 'none'}"
            raise ConfigError(f"{group}.{key}", value, f"{path} has no such option", remedy)
        arguments[key] = _checked(f"{group}.{key}", value, parameters[key])
    with blaming(f"{group}._target_", path, "making it"):
        try:
            signature.bind(**arguments)
            return target(**arguments)
        except TypeError as error:
            if missing := re.search(r"missing .*argument.*?: '(\w+)'", str(error)):
                problem = f"{path} needs a value for it"
                raise ConfigError(f"{group}.{missing[1]}", "", problem) from None
            raise


@contextmanager
def blaming(key: str, value: object, doing: str) -> Iterator[None]:
    """Run what a user may have written; where it fails, the configuration that named it is wrong.

    Args:
        key: What named it.
        value: The value of that key.
        doing: What is done with it, for the message.

    Raises:
        ConfigError: Anything was raised that is not the program's own.
    """
    try:
        yield
    except PpllError:
        raise
    except Exception as error:
        log.debug("%s=%s: %s", key, value, doing, exc_info=True)
        frames = traceback.extract_tb(error.__traceback__)[2:]  # without this and its caller's
        places = [(frame.filename, frame.lineno) for frame in frames]
        theirs = [(file, line) for file, line in places if _is_theirs(file)]
        where = f"see line {theirs[-1][1]} of {theirs[-1][0]}" if theirs else ""
        raise ConfigError(key, value, f"{doing} raised {_first_line(error)}", where) from error


def require(key: str, path: object, made: object, names: tuple[str, ...], remedy: str) -> None:
    """Check that an object offers what is asked of it; no property is computed for that.

    Raises:
        ConfigError: It lacks something.
    """
    nothing = object()
    for name in names:
        if inspect.getattr_static(made, name, nothing) is nothing and not hasattr(made, name):
            raise ConfigError(key, path, f"is of no use here: it has no {name!r}", remedy)


def _is_theirs(file: str) -> bool:
    """Whether a user may have written a file of code: it is not installed, and not ours."""
    elsewhere = (str(Path(__file__).parents[1]), sys.prefix, sys.base_prefix)
    return os.path.isabs(file) and not file.startswith(elsewhere)


def _first_line(error: BaseException) -> str:
    """An exception with the first line of what it says."""
    message = str(error).strip().partition("\n")[0]
    return type(error).__name__ + (message and f": {message}")


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


def locate(key: str, path: object) -> Any:
    """Import what a dotted path names.

    Raises:
        ConfigError: It cannot be imported, or called; `key` is what named it.
    """
    if not isinstance(path, str) or "." not in path or path.startswith("."):
        raise ConfigError(key, path, "is not the dotted path of a class")
    module, _, name = path.rpartition(".")
    try:
        _make_findable(module.partition(".")[0])
        found = import_module(module)
    except (ImportError, AttributeError) as error:
        raise ConfigError(key, path, f"cannot be imported ({error})") from None
    except (Exception, SystemExit) as error:  # of a user's module, as it is executed
        problem = f"cannot be imported ({_first_line(error)})"
        raise ConfigError(key, path, problem) from error
    try:
        target = getattr(found, name)
    except AttributeError as error:
        remedy = meant(name, vars(found)).strip()
        raise ConfigError(key, path, f"cannot be imported ({error})", remedy) from None
    if not callable(target):
        raise ConfigError(key, path, "is not a class")
    return target


def _make_findable(package: str) -> None:
    """Have a module that is not installed looked for in the folder where the program was started.

    Not before that: whatever lies there could be imported in the place of an optional dependency of
    an installed package. Workers get `sys.path` from this process.
    """
    folder = str(start_folder())
    with suppress(ValueError):  # a module that was made by hand, as `__main__`, is there
        if folder not in sys.path and find_spec(package) is None:
            sys.path.append(folder)


def start_folder() -> Path:
    """The folder where the program was started; hydra.job.chdir=true leaves it."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        return Path(HydraConfig.get().runtime.cwd)
    return Path.cwd()


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # a name that exists for type checkers only: its class must judge by itself
        return {}


def parameters_of(target: Any) -> dict[str, Any]:
    """Annotations of a class's arguments, by name.

    Those of base classes belong to them where a constructor takes `**`.
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    found: dict[str, Any] = {}
    for function in functions:
        if function is object.__init__:
            break
        hints = _hints(function)
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


def targets_in(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The class that each `_target_` of a configuration names, with its key.

    Args:
        node: The configuration, or a part of it.
        key: The key of that part.
    """
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        inner = f"{key}.{name}" if key else str(name)
        if name == "_target_":
            yield inner, str(value)
        else:
            yield from targets_in(value, inner)
