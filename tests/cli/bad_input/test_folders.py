"""A folder that cannot be a new run directory, or cannot be resumed, is refused in one line."""

import errno
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ppll_cli.config.composition import GROUPS
from ppll_cli.launch.record import CONFIG_FORMAT
from tests.cli.bad_input.conftest import Refusal, Refused, write


def folder(name: str) -> None:
    Path(name).mkdir()


def link(name: str, target: str = "nothing") -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).symlink_to(target)


def record(**changed: object) -> None:
    """Write a run directory `run` with changes in its `config.json`."""
    groups: dict[str, object] = {group: {} for group in GROUPS}
    config = {**groups, "choices": dict.fromkeys(GROUPS, "x"), **changed}
    write("run/config.json", json.dumps(config))


def record_with_link(name: str, target: str) -> None:
    record()
    link(f"run/{name}", target)


NEWER = f"has format {CONFIG_FORMAT + 1}, but this program reads formats 1 to {CONFIG_FORMAT}; "
NEWER += "use a newer"


UNKNOWN = "--config-dir=conf model=mine hydra.run.dir=${model.dim}"


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (lambda: None, "give a run directory"),
        (partial(write, "run"), "give a run directory"),
        (partial(folder, "run"), "that a run printed at its end"),
        (partial(write, "run/config.json"), "holds no config.json"),
        (partial(write, "run/config.json", "[]"), "holds no config.json of a run"),
        (partial(write, "run/ppll-run.log"), "start the run again with"),
        (partial(record, format=CONFIG_FORMAT + 1), NEWER),
        (partial(record, format="1"), f"formats 1 to {CONFIG_FORMAT}; restore the file"),
        (partial(record_with_link, "ppll-run.log", "nothing"), "its ppll-run.log is not a file"),
        (partial(record_with_link, "ppll-run.log", "config.json"), "ppll-run.log is a symbolic l"),
        (partial(record_with_link, "metrics.jsonl", "config.json"), "remove the link"),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_refused(
    refused: Refused, arrange: Callable[[], None], words: str
) -> None:
    arrange()
    refused("resume=run", words, "resume=")


@pytest.mark.parametrize(
    ("more", "start", "words"),
    [
        ("--multirun", "resume=", "is the folder of a single run; remove --multirun"),
        ("hydra.run.dir=other", "hydra.run.dir=other", "leave this option out"),
    ],
)
def test_a_run_is_resumed_in_its_own_folder_only(
    refused: Refused, more: str, start: str, words: str
) -> None:
    record()
    refused(f"resume=run {more}", words, start)


@pytest.mark.parametrize(
    ("arguments", "words", "start", "arrange"),
    [
        ("hydra.run.dir=a", "choose a new folder", None, partial(write, "a/b")),
        ("hydra.run.dir=a", "not empty", None, partial(link, "a/ppll-run.log")),
        (
            "hydra.run.dir=a${seed}",
            "choose a new folder",
            "hydra.run.dir=a0",
            partial(write, "a0/b"),
        ),
        (
            "hydra.run.dir=${oc.env:FULL}",
            "exists and is not empty",
            "hydra.run.dir=a",
            partial(write, "a/b"),
        ),
        ("++hydra.run.dir='a'", "choose a new folder", "hydra.run.dir=a", partial(write, "a/b")),
        ("hydra.run.dir=a/b", "can write to", None, partial(write, "a")),
        ("", "give hydra.run.dir=FOLDER", "hydra.run.dir=outputs", partial(write, "outputs")),
        ("hydra.run.dir=/proc/a/b", "can write to", None, None),
        ("hydra.run.dir=null", "not the name of a folder", None, None),
        (f"hydra.run.dir={'a' * 300}", "name too long", "hydra.run.dir=aaa", None),
        (
            f"--multirun seed=1,2 hydra.sweep.dir={'a' * 300}",
            "name too long",
            "hydra.sweep.dir=aaa",
            None,
        ),
    ],
)
def test_a_folder_that_cannot_be_a_new_run_directory_is_refused(
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    words: str,
    start: str | None,
    arrange: Callable[[], None] | None,
) -> None:
    monkeypatch.setenv("FULL", "a")
    if arrange:
        arrange()
    refused(arguments, words, start)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("hydra.run.dir=a gpus=0", "greater than"),
        ("hydra.run.dir=a/b/c gpus=0", "greater than"),
        ("hydra.run.dir=${now:%Y}/x gpus=11", "use gpus=10"),
        ("hydra.job.chdir=true gpus=11", "use gpus=10 at most"),
    ],
)
def test_a_refused_run_leaves_no_folder(refused: Refused, arguments: str, words: str) -> None:
    """An empty folder that existed before stays, and nothing is left in it."""
    folder("a")
    refused(arguments, words)


@pytest.mark.parametrize("name", ["a", "b/c"])
def test_a_run_that_hydra_cannot_begin_leaves_no_folder(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On a full disk, Hydra makes the folder and an empty log before it fails."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder("a")
    monkeypatch.setattr("hydra.core.utils._save_config", full)
    refused(f"hydra.run.dir={name}", "Hydra cannot write into this folder: No space left")


@pytest.mark.parametrize(
    ("arguments", "words", "more"),
    [
        ("hydra.run.dir=../cwd/a gpus=11", "use gpus=10", ["ppll-run.log"]),
        # Before Hydra starts, the program does not know this folder.
        (UNKNOWN, "is not empty: it holds results", ["ppll-run.log", "results"]),
        (UNKNOWN, "is not empty: it holds .hydra", []),
    ],
)
def test_a_refused_run_changes_no_file_in_a_folder_that_existed(
    refusal: Refusal, arguments: str, words: str, more: list[str]
) -> None:
    """Hydra replaces its own files, and the program then removed `.hydra`, the user's files too."""
    folder("conf")
    write("conf/model/mine.yaml", "_target_: a.Mine\ndim: a\n")
    folder("a")
    for name in (".hydra/config.yaml", ".hydra/notes", *more):
        write(f"a/{name}", f"this is {name}")
    assert words in refusal(arguments.split())
    for name in (".hydra/config.yaml", ".hydra/notes", *more):
        assert Path("a", name).read_text() == f"this is {name}"


@pytest.mark.parametrize("names", [["a/1/.hydra/config.yaml", "a/1/results"], ["a/1/.hydra/a"]])
def test_a_sweep_whose_subfolder_is_not_empty_is_refused(
    refusal: Refusal, names: list[str]
) -> None:
    """Hydra replaced files of another program in `.hydra`, and only then the job was refused."""
    folder("a")
    folder("a/1")
    for name in names:
        write(name, "theirs")
    line = refusal(["--multirun", "hydra.sweep.dir=a", "seed=1,2"])
    assert line.endswith("its subfolder 1 is not empty; choose a new folder")
    assert {Path(name).read_text() for name in names} == {"theirs"}
