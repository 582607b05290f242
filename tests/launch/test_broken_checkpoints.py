"""A run with broken checkpoints is resumed from a good one, or starts again."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError
from tests.conftest import Result, resumed
from tests.launch.resumed import assert_as_if_unbroken, checkpoint, contents, lines


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        pytest.param(
            *("stage-0.safetensors", truncate, "stage-0.safetensors has"), marks=pytest.mark.slow
        ),
        ("stage-1.safetensors", flip, "stage-1.safetensors does not match its checksum"),
    ],
)
def test_the_checkpoint_before_a_broken_one_is_used(
    unbroken: Callable[[str], Result],
    copied: Callable[[str], Result],
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: Callable[[Path], None],
    problem: str,
) -> None:
    """A machine that crashes can leave such files.

    The last line of the metrics file is incomplete.
    """
    broken = copied("ppll")
    damage(checkpoint(broken, 25) / file)
    metrics = broken.run_dir / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    result = resumed(broken)
    assert f"{checkpoint(broken, 25)} is not used: {problem}" in caplog.text
    assert "continuing after step 20, from " in caplog.text
    assert_as_if_unbroken(result, unbroken("ppll"))
    everything = sorted(lines(unbroken("ppll")), key=str)
    assert sorted(lines(result), key=str) == everything


def break_all(result: Result) -> None:
    for step in (20, 25):
        truncate(checkpoint(result, step) / "stage-0.safetensors")


def remove_all(result: Result) -> None:
    """Remove all checkpoints, as if the run had died while stage 1 wrote the first one."""
    folder = result.run_dir / "checkpoints"
    shutil.rmtree(folder)
    (folder / ".step-5.unfinished").mkdir(parents=True)
    (folder / ".step-5.unfinished" / "stage-1.safetensors").write_bytes(b"half")
    for name in ("summary.json", "model.safetensors"):
        (result.run_dir / name).unlink()


@pytest.mark.parametrize("damage", [break_all, pytest.param(remove_all, marks=pytest.mark.slow)])
def test_a_run_without_a_usable_checkpoint_starts_again(
    unbroken: Callable[[str], Result],
    copied: Callable[[str], Result],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Result], None],
) -> None:
    broken = copied("ppll")
    damage(broken)
    result = resumed(broken, "gpus=1")  # its modules are in the record
    assert caplog.text.count("the run starts again at step 0") == 1
    assert caplog.text.count("is not used") == (2 if damage is break_all else 0)
    assert_as_if_unbroken(result, unbroken("ppll"))
    assert sorted(lines(result), key=str) == sorted(lines(unbroken("ppll")), key=str)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_keeps_its_modules(
    unbroken: Callable[[str], Result], copied: Callable[[str], Result]
) -> None:
    """Modules follow the stages in this case. Other modules would train something else."""
    name = "ppll, modules as stages"
    broken = copied(name)
    remove_all(broken)
    assert_as_if_unbroken(resumed(broken, "gpus=2"), unbroken(name))


@pytest.mark.slow
def test_files_of_an_unfinished_checkpoint_are_not_reused(
    unbroken: Callable[[str], Result], copied: Callable[[str], Result]
) -> None:
    """The resumed run has no stage 1 that would replace this file."""
    broken = copied("ppll")
    shutil.rmtree(checkpoint(broken, 25))
    left = checkpoint(broken, 25).with_name(".step-25.unfinished")
    left.mkdir()
    (left / "stage-1.safetensors").write_bytes(b"half")
    result = resumed(broken, "gpus=1")
    assert {path.name for path in checkpoint(broken, 25).iterdir()} == {
        "manifest.json",
        "stage-0.safetensors",
    }
    assert_as_if_unbroken(result, unbroken("ppll"))


def test_a_checkpoint_of_a_later_program_is_refused(copied: Callable[[str], Result]) -> None:
    """The run directory is not changed."""
    result = copied("ppll")
    manifest = checkpoint(result, 25) / "manifest.json"
    manifest.write_text(json.dumps({"format": 2, "what": "ever"}))
    before = contents(result.run_dir)
    problem = "step-25 has format 2, but this program reads formats up to 1"
    with pytest.raises(ConfigError, match=problem):
        resumed(result)
    assert contents(result.run_dir) == before
