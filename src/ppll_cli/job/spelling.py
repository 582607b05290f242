"""Converts headers and reports for other machines to JSON, and back. Uses no pickle."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

from ppll_cli.job.course import EvaluationBatch, TrainBatch, Version
from ppll_cli.job.links import Header
from ppll_cli.job.manifest import SavedFile
from ppll_cli.observe.spans import Span
from ppll_cli.pipeline.instructions import Instruction

_ITEMS = (TrainBatch, EvaluationBatch, Version)  # marks are among the `Instruction` types

_KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (Header, *_ITEMS, *get_args(Instruction), Span, SavedFile)
}


def spelled(value: Any) -> Any:
    """Convert a header or a report to plain data for JSON, which `read` converts back.

    Raises:
        TypeError: The value contains an object of a type that `read` cannot make.
    """
    name = type(value).__name__
    if name in _KINDS:
        is_tuple = isinstance(value, tuple)
        parts = value if is_tuple else [getattr(value, field.name) for field in fields(value)]
        return {"is": name, "of": [spelled(part) for part in parts]}
    if isinstance(value, dict):
        return {"is": "dict", "of": [[spelled(k), spelled(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [spelled(part) for part in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"messages to other machines cannot contain {value!r}")


def read(plain: Any) -> Any:
    """Return the value that `spelled` turned into plain data. Plain tuples come back as lists.

    Raises:
        KeyError, TypeError: `spelled` has not made this plain data.
    """
    if isinstance(plain, list):
        return [read(part) for part in plain]
    if not isinstance(plain, dict):
        return plain
    if plain["is"] == "dict":
        return {read(key): read(value) for key, value in plain["of"]}
    return _KINDS[plain["is"]](*read(plain["of"]))
