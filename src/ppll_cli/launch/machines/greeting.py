"""Reads each machine's first message, which another version of the program may have sent.

In all versions the message is a JSON object. Its object "machine" has at least the keys "host" and
"versions". So versions can be compared before anything else is read.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ppll_cli import __version__
from ppll_cli.errors import ConfigError
from ppll_cli.prepare.spread import Machine

LARGEST_BYTES = 2**16
"""Largest size of a first message. The messages of this version have a few hundred bytes."""

_REMEDY = "install the same version on all machines"
_ADAPTER = TypeAdapter(Machine)


def read_greeting(text: bytes) -> dict[str, Any]:
    """Return a machine's first message; {} if the text is too large, or is not a JSON object."""
    read = _read_json(text) if len(text) <= LARGEST_BYTES else None
    return read if isinstance(read, dict) else {}


def read_welcome(text: bytes) -> list[dict[str, Any] | None]:
    """Return the first messages of all machines, which machine 0 has collected.

    None stands for a machine that did not join, and {} for a message that is not a JSON object.

    Raises:
        ConfigError: This version cannot read machine 0's text.
    """
    read = _read_json(text)
    if not isinstance(read, list):
        raise _unreadable(0)
    return [each if each is None or isinstance(each, dict) else {} for each in read]


def greeted(messages: Sequence[Mapping[str, Any]]) -> list[Machine]:
    """Return each machine's description, from the machines' first messages.

    Raises:
        ConfigError: The versions of two machines differ, or this version cannot read a message.
    """
    found: list[Mapping[str, Any]] = []
    for rank, message in enumerate(messages):
        machine = message.get("machine")
        if not (isinstance(machine, dict) and isinstance(machine.get("versions"), dict)):
            raise _unreadable(rank)
        found.append(machine)
        first, other = found[0]["versions"], machine["versions"]
        for name in {**first, **other}:
            if (theirs := other.get(name)) != (ours := first.get(name)):
                here = f"is the version on machine {rank} ({machine.get('host')})"
                problem = f"{here}, but machine 0 ({found[0].get('host')}) has {ours}"
                raise ConfigError(name, theirs, problem, _REMEDY)
    return [_described(rank, machine) for rank, machine in enumerate(found)]


def _described(rank: int, machine: Mapping[str, Any]) -> Machine:
    try:
        return _ADAPTER.validate_json(json.dumps(machine), strict=True)
    except ValidationError:
        raise _unreadable(rank) from None


def _read_json(text: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _unreadable(rank: int) -> ConfigError:
    problem = f"this version cannot read the first message of machine {rank}"
    return ConfigError("ppll-run", __version__, problem, _REMEDY)
