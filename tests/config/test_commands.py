"""A shell and Hydra read printed commands as they are meant."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ppll_cli.config.commands import STARTED_AS, command, setting, short_path, word
from ppll_cli.leaves.programs import MODULES

PARSER = OverridesParser.create()
ROOT = Path(__file__).parents[2]

NASTY = st.text(st.sampled_from("ab1.,=:$%&{}[]()'\"\\ ~#!?*@+-/é漢|;<>^`"), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NASTY
VALUES = LEAVES | st.lists(LEAVES, max_size=3)


def read(override: str) -> Any:
    """Return the value that Hydra and then OmegaConf read from an override."""
    (found,) = PARSER.parse_overrides([override])
    assert found.key_or_group == "key"
    value: Any = OmegaConf.to_container(OmegaConf.create({"key": found.value()}), resolve=True)
    return value["key"]


@given(VALUES)
def test_hydra_reads_back_the_value_of_a_setting(value: Any) -> None:
    found = read(setting("key", value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value",
    ["true", "NULL", "inf", "nan", "1", "1e3", "0x1", "1_000", "", "${oc.env:HOME}", "a\nb"],
)
def test_text_that_looks_like_another_value_stays_text(value: str) -> None:
    assert read(setting("key", value)) == value


def test_settings_are_quoted_only_if_needed() -> None:
    assert setting("optim.lr", 0.1) == "optim.lr=0.1"
    assert setting("local.cuts", ["blocks.1", "head"]) == "local.cuts=[blocks.1,head]"
    assert setting("data.root", "/data/a-b_c") == "data.root=/data/a-b_c"
    assert setting("resume", "/data/a=b c") == 'resume="/data/a=b c"'
    assert word('resume="/data/a=b c"') == "'resume=\"/data/a=b c\"'"


def test_a_shell_reads_back_quoted_words() -> None:
    texts = ["a b", "it's", '"', "$HOME", "~", "~model.dim", "[a,b]", "a\nb", "\\", "`ls`", "é", ""]
    texts += [
        "tab\t1",
        "bell\a7",
        "back\\slash\n",
        "quote'\n",
        os.fsdecode(b"/not/utf-8/\xff9"),
        "!",
    ]
    line = " ".join(map(word, texts))
    assert "\n" not in line
    found = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {os.fsencode(line).decode()}"],
        capture_output=True,
        check=True,
        timeout=100,
    )
    assert found.stdout.split(b"\0")[:-1] == [os.fsencode(text) for text in texts]


# --- How the program was started -----------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that pretends how the user started this process.

    The scripts of the project are beside the process's Python.
    """
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in (*MODULES, "python", "wandb"):
        (folder / name).touch(0o755)

    def started(*argv: str, script: str = "", path: str = "", wrapper: str = "") -> None:
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        monkeypatch.setattr(sys, "orig_argv", list(argv))
        monkeypatch.setattr(sys, "argv", [script or argv[-1]])
        monkeypatch.setenv("PATH", path)
        if wrapper:
            monkeypatch.setenv(STARTED_AS, wrapper)
        else:
            monkeypatch.delenv(STARTED_AS, raising=False)

    return started


def programs() -> tuple[str, str]:
    return command("ppll-run", "a=1"), command("ppll-compare", "b c")


def test_a_script_in_the_path_is_printed_by_its_name(started: Any, tmp_path: Path) -> None:
    script = str(tmp_path / ".venv" / "bin" / "ppll-run")
    started("python", script, script=script, path=str(tmp_path / ".venv" / "bin"))
    assert programs() == ("ppll-run a=1", "ppll-compare 'b c'")
    assert command("wandb", "sync") == "wandb sync"


@pytest.mark.parametrize("name", ["ppll-run", "ppll-plan"])
def test_a_script_called_by_its_path_is_printed_with_the_path(started: Any, name: str) -> None:
    started(".venv/bin/python", f".venv/bin/{name}", "-m", f"{name}=1", script=f".venv/bin/{name}")
    assert programs() == (".venv/bin/ppll-run a=1", ".venv/bin/ppll-compare 'b c'")
    assert command("wandb", "sync") == ".venv/bin/wandb sync"


def test_a_script_in_the_current_folder_is_printed_with_a_dot(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(".venv/bin")
    started("python", "ppll-run", script="ppll-run")
    assert programs() == ("./ppll-run a=1", "./ppll-compare 'b c'")


def test_scripts_run_is_printed_as_it_was_called(started: Any, tmp_path: Path) -> None:
    script = str(tmp_path / ".venv" / "bin" / "ppll-run")
    started("python", script, script=script, wrapper="scripts/run")
    assert programs() == ("scripts/run a=1", ".venv/bin/ppll-compare 'b c'")
    started("python", script, script=script, wrapper="run")  # as with `bash run`
    assert command("ppll-run") == "./run"


def test_a_module_is_printed_with_python_and_its_options(started: Any, tmp_path: Path) -> None:
    path = str(tmp_path / ".venv" / "bin")
    started("python", "-X", "dev", "-m", "ppll_cli", "-m", "seed=1,2", script="x", path=path)
    assert programs() == (
        "python -X dev -m ppll_cli a=1",
        "python -X dev -m ppll_cli.cli.compare 'b c'",
    )
    started("python", "-Im", "ppll_cli.cli.compare", "ppll_cli", script="x", path="/usr/bin:/bin")
    python = tmp_path / ".venv" / "bin" / "python"  # in this PATH, `python` is another Python
    assert command("ppll-run") == f"{python} -Im ppll_cli"


def test_other_starts_are_printed_with_a_script_or_module(started: Any, tmp_path: Path) -> None:
    started("python", "-c", "import ppll_cli", script="-c")
    assert command("ppll-run") == ".venv/bin/ppll-run"
    (tmp_path / ".venv" / "bin" / "ppll-run").unlink()
    assert command("ppll-run") == f"{tmp_path / '.venv' / 'bin' / 'python'} -m ppll_cli"


def test_a_path_that_starts_with_a_dash_gets_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "-x" / "1") == "./-x/1"
    assert short_path(Path("/elsewhere/1")) == "/elsewhere/1"


def test_the_script_passes_on_how_it_was_called() -> None:
    """Run the script without its steps that set up an environment."""
    text = (ROOT / "scripts" / "run").read_text()
    text = text.replace('set_up "[all]" "$root"', "").replace("exec", f"echo ${STARTED_AS} #")
    text = text.replace('source "$root/scripts/_setup"', "")
    found = subprocess.run(
        ["bash", "-c", text, "scripts/run"], capture_output=True, text=True, timeout=100, check=True
    )
    assert found.stdout == "scripts/run\n"
