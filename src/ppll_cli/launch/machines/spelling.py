"""Converts workers' reports to JSON, for launchers of other machines, and back. Uses no pickle."""

from collections.abc import Callable
from dataclasses import astuple, is_dataclass
from typing import Any, get_args

from ppll_cli.job.manifest import SavedFile
from ppll_cli.observe.spans import Span
from ppll_cli.pipeline.instructions import Instruction

_KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (*get_args(Instruction), Span, SavedFile)
}


def spelled(value: Any) -> Any:
    """Turn a report, or a part of one, into plain data that `read` understands.

    Raises:
        TypeError: The report holds a value of a type that `read` does not understand.
    """
    if isinstance(value, Span):
        return {"is": "Span", "of": [spelled(part) for part in value]}
    if is_dataclass(value) and type(value).__name__ in _KINDS:
        return {"is": type(value).__name__, "of": list(astuple(value))}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {"is": "dict", "of": [[spelled(k), spelled(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [spelled(part) for part in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"reports cannot have {value!r}")


def read(plain: Any) -> Any:
    """Return the report from the result of `spelled`, with lists instead of tuples."""
    if isinstance(plain, list):
        return [read(part) for part in plain]
    if not isinstance(plain, dict):
        return plain
    if plain["is"] == "dict":
        return {read(key): read(value) for key, value in plain["of"]}
    return _KINDS[plain["is"]](*read(plain["of"]))
