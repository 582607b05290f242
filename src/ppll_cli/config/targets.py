"""Creates the objects whose classes a configuration names by `_target_`."""

import dataclasses
import inspect
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ppll_cli.errors import ConfigError, PpllError
from ppll_cli.leaves.names import meant
from ppll_cli.leaves.nested import flat

log = logging.getLogger(__name__)


def make(group: str, config: Mapping[str, Any]) -> Any:
    """Create the object that a group of the configuration describes, such as `model`.

    The class in `_target_` is called with the group's other keys as arguments. The arguments are
    first checked strictly against the annotations of the class.

    Raises:
        ConfigError: The class cannot be imported, or does not accept these arguments.
    """
    path = config.get("_target_")
    target = locate(f"{group}._target_", path)
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    try:
        parameters, signature = parameters_of(target), inspect.signature(target)
    except ValueError as error:  # a class written in C may have no signature
        raise ConfigError(f"{group}._target_", path, f"cannot be constructed: {error}") from None
    for key, value in arguments.items():
        if key not in parameters:
            remedy = meant(key, parameters) + f"it has {', '.join(parameters) or 'none'}"
            own = getattr(target, "__dict__", {})
            if key in own.get("__annotations__", ()) and "__init__" not in own:
                remedy = "decorate the class with @dataclass(frozen=True, kw_only=True)"
            raise ConfigError(f"{group}.{key}", value, f"{path} has no such option", remedy)
        with blaming(f"{group}.{key}", value, "checking it"):  # a user's validator may fail
            arguments[key] = checked(f"{group}.{key}", value, parameters[key])
    with blaming(f"{group}._target_", path, "constructing it"):
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
    """Turn exceptions of a user's own code, in the `with` block, into errors about a setting.

    Args:
        key: The setting.
        value: The setting's value.
        doing: What the code does, for the error, such as "importing it".

    Raises:
        ConfigError: The code raised `SystemExit`, or an exception other than `PpllError`.
    """
    try:
        yield
    except PpllError:
        raise
    except (Exception, SystemExit) as error:
        log.debug("%s=%s: %s", key, value, doing, exc_info=True)
        frames = traceback.extract_tb(error.__traceback__)[2:]  # without this frame and its caller
        places = [(frame.filename, frame.lineno) for frame in frames]
        theirs = [(file, line) for file, line in places if _is_user_code(file)]
        where = [f"see line {theirs[-1][1]} of {theirs[-1][0]}"] if theirs else []
        notes = "; ".join([*getattr(error, "__notes__", ()), *where])
        raise ConfigError(key, value, f"{doing} raised {_first_line(error)}", notes) from error


def require(key: str, path: object, made: object, names: tuple[str, ...], remedy: str) -> None:
    """Check that an object of a user's own class has the attributes `names`.

    Raises:
        ConfigError: An attribute is missing; the error is about `key=path`, and ends with `remedy`.
    """
    nothing = object()
    for name in names:
        # getattr_static does not evaluate properties.
        if inspect.getattr_static(made, name, nothing) is nothing and not hasattr(made, name):
            raise ConfigError(key, path, f"cannot be used here: it has no {name!r}", remedy)


def _is_user_code(file: str) -> bool:
    elsewhere = (str(Path(__file__).parents[1]), sys.prefix, sys.base_prefix)
    return os.path.isabs(file) and not any(Path(file).is_relative_to(each) for each in elsewhere)


def _first_line(error: BaseException) -> str:
    message = str(error).strip().partition("\n")[0]
    return type(error).__name__ + (message and f": {message}")


def check_options(group: str, made: Any) -> None:
    """Check the fields of a dataclass object against their annotations.

    Classes call it in `__post_init__`, so that it also checks objects that Python code creates
    without a configuration. A field for a list
    accepts a tuple, and a field for a number accepts a NumPy number. No value is converted.

    Args:
        group: The configuration group of the object, for the error.
        made: The object.

    Raises:
        ConfigError: A field's value does not fit its annotation.
    """
    names = [field.name for field in dataclasses.fields(made) if field.init]
    for cls in reversed(type(made).__mro__):
        declared = [name for name in names if name in vars(cls).get("__annotations__", ())]
        hints = _hints(cls) if declared else {}
        for name in declared:
            value, annotation = getattr(made, name), hints.get(name, Any)
            checked(f"{group}.{name}", value, annotation, plain=False)


def checked(key: str, value: Any, annotation: Any, *, plain: bool = True) -> Any:
    """Check a value against an annotation, and return it converted to the annotated type.

    Args:
        key: The value's key, for the error.
        value: The value.
        annotation: The annotation. One that pydantic does not know accepts all values.
        plain: True for values of a configuration: they must be data that JSON can represent, and
            2.0 is not an integer. False for values of Python code: pydantic's lax rules apply.

    Raises:
        ConfigError: The value does not fit.
    """
    if annotation is inspect.Parameter.empty:
        return value
    try:
        adapter = TypeAdapter(annotation)
    except PydanticSchemaGenerationError:  # unknown to pydantic; the called class must check it
        return value
    try:
        if plain:
            return adapter.validate_json(_as_json(key, value), strict=True)
        return adapter.validate_python(value)
    except ValidationError as error:
        raise refusal(key, value, annotation, error.errors()) from None


def refusal(key: str, value: object, annotation: Any, found: Sequence[ErrorDetails]) -> ConfigError:
    """Return the error that tells the user why pydantic refused a value.

    Args:
        key: The value's key.
        value: The value.
        annotation: The type that was required.
        found: Pydantic's description of each reason.
    """
    problem = ", or ".join(dict.fromkeys(_reworded(each["msg"]) for each in found))
    of_elements = all(any(isinstance(part, int) for part in each["loc"]) for each in found)
    if NoneType in get_args(annotation) and not of_elements:
        problem += ", or null"
    return ConfigError(key, value, problem)


def _as_json(key: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError:
        problem = "must be a text, a number, a boolean, null, a list or a dictionary"
        raise ConfigError(key, value, problem) from None


def _reworded(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("valid array", "valid list").replace("List should", "must")
    message = message.partition(" after validation")[0]
    return message[0].lower() + message[1:]


def locate(key: str, path: object) -> Any:
    """Import the class or function that a dotted path names.

    Raises:
        ConfigError: The path cannot be imported, or names something that cannot be called.
    """
    if not isinstance(path, str) or "." not in path or path.startswith("."):
        raise ConfigError(key, path, "is not the dotted path of a class", "give package.Class")
    module, _, name = path.rpartition(".")
    names: Iterable[str] = ()
    with blaming(key, path, "importing it"):
        try:
            _make_findable(module.partition(".")[0])
            found = import_module(module)
            names = vars(found)
            target = getattr(found, name)
        except (ImportError, AttributeError) as error:
            remedy = meant(name, names).strip()
            raise ConfigError(key, path, f"cannot be imported ({error})", remedy) from None
    if not callable(target):
        raise ConfigError(key, path, "is not a class")
    return target


def _make_findable(package: str) -> None:
    folder = str(start_folder())
    # Add the folder only if it is needed, and as the last entry, so that no file in it hides an
    # installed package. Workers inherit `sys.path`.
    with suppress(ValueError):  # raised for `__main__`, for example, which is already imported
        if folder not in sys.path and find_spec(package) is None:
            sys.path.append(folder)


def start_folder() -> Path:
    """Return the folder in which the user started the program, even with hydra.job.chdir=true."""
    if "hydra" in sys.modules:  # workers do not import Hydra
        from hydra.core.hydra_config import HydraConfig

        if HydraConfig.initialized():
            return Path(HydraConfig.get().runtime.cwd)
    return Path.cwd()


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except Exception:  # unknown names in annotations; the class itself must check its arguments
        return {}


def parameters_of(target: Any) -> dict[str, Any]:
    """Return the annotation of each argument of a class or function, by the argument's name.

    If a constructor accepts `**kwargs`, the arguments of the base class's constructor are added.
    The result is `inspect.Parameter.empty` for an argument without annotation.

    Raises:
        ValueError: The class or function is written in C, and has no signature.
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
            named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if named and name != "self":
                found.setdefault(name, hints.get(name, parameter.empty))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def targets_in(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the key and the value of each `_target_` in a configuration."""
    found = flat(config).items()
    return [(key, str(value)) for key, value in found if key.split(".")[-1] == "_target_"]
