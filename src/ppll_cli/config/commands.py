"""The commands that the program prints to be copied: which program they call, and their quoting.

Imports nothing heavy.
"""

import os
import re
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED_AS = "PPLL_RUN_STARTED_AS"
"""The environment variable in which `scripts/run` passes the path by which it was called."""

MODULES = {
    "ppll-run": "ppll_cli",
    "ppll-plan": "ppll_cli.cli.plan",
    "ppll-compare": "ppll_cli.cli.compare",
    "ppll-eval": "ppll_cli.cli.evaluate",
}
"""What `python -m` calls the programs."""

_PLAIN = re.compile(r"[A-Za-z/][\w./-]*", re.ASCII)
"""Text that Hydra's grammar reads as itself, but for the words below."""

_OTHERS = ("true", "false", "null", "inf", "nan")
"""Words that Hydra's grammar reads as something else than text."""


def command(program: str, *arguments: str) -> str:
    """A command line that a shell takes as it stands, in one line.

    Args:
        program: The name of one of our programs, or of another one in the same environment. It is
            called as the user called this program, where that is possible.
        arguments: Its arguments, not quoted for a shell.
    """
    return " ".join(map(word, [*_program(program), *arguments]))


def setting(key: str, value: Any) -> str:
    """An override, `key=value`, that Hydra reads as this value; it is not quoted for a shell."""
    return f"{key}={_hydra(value)}"


def key_of(override: str) -> str:
    """The key, or the group, of an override."""
    return override.lstrip("+~").partition("=")[0]


def quoted(text: str) -> str:
    """A text between quotes of Hydra's grammar; interpolations in it stay interpolations."""
    quote = "'" if '"' in text and "'" not in text else '"'  # the one that needs no escape
    # A backslash is one, unless a quote follows.
    text = re.sub(rf"(\\*){quote}", rf"\1\1\\{quote}", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return quote + text + quote


def word(text: str) -> str:
    """A text as one word of a shell's command line, without a line break."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"  # bash, zsh and ksh read this


def short_path(path: Path) -> str:
    """A path as an argument: relative to the current directory where it is below it."""
    try:
        here = Path.cwd()  # with hydra.job.chdir=true it is the run directory
    except OSError:  # somebody removed it
        return str(path)
    text = str(path.relative_to(here)) if here in path.parents else str(path)
    return f"./{text}" if text.startswith("-") else text


def pip_install(what: str) -> str:
    """The command that installs a package where this program would find it."""
    return " ".join([word(sys.executable), "-m pip install", word(what)])


def _program(name: str) -> list[str]:
    """The words by which a shell calls a program."""
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
    """`python -m`, with Python's own options, where the program was started in this way."""
    given = sys.orig_argv
    for number, (option, module) in enumerate(pairwise(given)):
        if re.fullmatch(r"-[A-Za-z]*m", option) and module in MODULES.values():
            return [_python(given[0]), *given[1:number], option]
    return []


def _python(given: str) -> str:
    """This Python as the user called it, where a shell finds the same one by that."""
    found = shutil.which(given)
    ours = Path(sys.executable)
    same = found is not None and Path(found).absolute().parent == ours.parent
    return given if same else sys.executable


def _hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # OmegaConf reads it after Hydra: what would be an interpolation is escaped.
        return value if _is_plain(value) else quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", value))
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None and text.lower() not in _OTHERS


def _escaped(sign: str) -> str:
    if sign in "\\'":
        return f"\\{sign}"
    if sign.isprintable():
        return sign
    return "".join(f"\\{byte:03o}" for byte in sign.encode(errors="surrogateescape"))
