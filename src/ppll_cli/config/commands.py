"""Builds the command lines that the program prints for users to copy. Imports no torch."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ppll_cli.leaves.programs import MODULES

STARTED_AS = "PPLL_RUN_STARTED_AS"
"""Environment variable that `scripts/run` sets to the path by which the user called it."""

SEARCH_PATH = "hydra.searchpath"
"""Hydra's key for users' folders of options. Hydra searches this program's folder before them."""

_PLAIN = re.compile(r"[A-Za-z/][\w./-]*", re.ASCII)
"""Matches texts that Hydra reads without quotes. The words in `_OTHERS` match too, but need quotes.
"""

_OTHERS = ("true", "false", "null", "inf", "nan")
"""Words that Hydra reads, without quotes, as a number, a boolean or null."""


def command(program: str, *arguments: str) -> str:
    """Return a command that calls a program with arguments, in one line and quoted for a shell.

    `program` is the name of a program in this Python environment. If possible, the command calls it
    as the user called the current program, for example by `python -m`.
    """
    return " ".join(map(word, [*_program(program), *arguments]))


def setting(key: str, value: Any) -> str:
    """Return an override, `key=value`, as Hydra reads it; it is not quoted for a shell."""
    return f"{key}={_hydra(value)}"


def search_path(folders: Iterable[Path]) -> str:
    """Return the override that adds users' folders with options to Hydra's search path."""
    return setting(SEARCH_PATH, [f"file://{folder.resolve()}" for folder in folders])


def key_of(override: str) -> str:
    """Return the configuration key or group that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def quoted(text: str) -> str:
    """Return a text in quotes of Hydra's grammar. Interpolations such as `${key}` still work."""
    quote = "'" if '"' in text and "'" not in text else '"'  # prefer a quote that needs no escape
    # Only a backslash before a quote must be doubled.
    text = re.sub(rf"(\\*){quote}", rf"\1\1\\{quote}", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return quote + text + quote


def word(text: str) -> str:
    """Quote a text as one word for a shell; escape line breaks and other control characters."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"  # bash, zsh and ksh read this form


def short_path(path: Path) -> str:
    """Return a path for a command line; a path inside the current directory becomes relative.

    If the result would begin with `-`, it gets the prefix `./`, so that it is not an option.
    """
    try:
        here = Path.cwd()  # the run directory if hydra.job.chdir=true
    except OSError:  # somebody removed the current directory
        return str(path)
    text = str(path.relative_to(here)) if here in path.parents else str(path)
    return f"./{text}" if text.startswith("-") else text


def pip_install(what: str) -> str:
    """Return the pip command, quoted for a shell, that installs a package.

    It installs into this program's Python environment.
    """
    return " ".join([word(sys.executable), "-m pip install", word(what)])


def _program(name: str) -> list[str]:
    wrapper = os.environ.get(STARTED_AS)
    if wrapper and name == "ppll-run":
        return [wrapper if "/" in wrapper else f"./{wrapper}"]
    if name in MODULES and (python := _python_with_module()):
        return [*python, MODULES[name]]
    started = Path(sys.argv[0])
    places = [started.parent] if started.name in MODULES else []
    for place in (*places, Path(sys.executable).parent):
        script = place / name
        if script.is_file():
            found = shutil.which(name)
            if found and os.path.samefile(found, script):
                return [name]
            text = short_path(script)
            return [text if "/" in text else f"./{text}"]
    return [sys.executable, "-m", MODULES.get(name, name)]


def _python_with_module() -> list[str]:
    given = sys.orig_argv
    for number, (option, module) in enumerate(pairwise(given)):
        if re.fullmatch(r"-[A-Za-z]*m", option) and module in MODULES.values():
            return [_python(given[0]), *given[1:number], option]
    return []


def _python(given: str) -> str:
    found = shutil.which(given)
    ours = Path(sys.executable)
    same = found is not None and Path(found).absolute().parent == ours.parent
    return given if same else sys.executable


def _hydra(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and value.lower() not in _OTHERS
        # After Hydra, OmegaConf reads the text too, and would take `${` for an interpolation.
        return value if is_plain else quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", value))
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape"))
