"""The user's cache folder, which torch uses instead of /tmp."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ppll_cli.leaves import cache
from ppll_cli.leaves.cache import INDUCTOR, cache_folder, keep_compiled_code

IMPORTS = """
import os
import ppll_cli
import torch._dynamo
from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir
print(cache_dir(), triton_cache_dir(0), sep="\\n")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a process: its folders for cache and temporary files are empty."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    kept = {n: v for n, v in os.environ.items() if n not in (INDUCTOR, "TRITON_CACHE_DIR")}
    kept |= {"TMPDIR": str(temporary), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)}


def output_of(environment: dict[str, str], *command: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, *command],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return found.stdout.splitlines()


@pytest.mark.slow
def test_torch_leaves_nothing_in_tmp(tmp_path: Path, environment: dict[str, str]) -> None:
    """Creating an optimizer imports torch's compiler, which once made a folder in /tmp."""
    folder = tmp_path / "cache" / "ppll-run" / "inductor"
    found = output_of(environment, "-c", IMPORTS)
    assert found == [str(folder), str(folder / "triton" / "0")]
    assert folder.is_dir()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_a_run_leaves_nothing_in_tmp(tmp_path: Path, environment: dict[str, str]) -> None:
    small = ["data=synthetic", "data.size=8", "data.train_samples=16", "data.test_samples=8"]
    small += ["batch_size=8", "model.dim=16", "model.depth=2", "model.heads=2", "epochs=1"]
    small += ["device=cpu", "threads=1", "gpus=1", f"hydra.run.dir={tmp_path / 'run'}"]
    output_of(environment, "-m", "ppll_cli", *small)
    assert (tmp_path / "run" / "summary.json").exists()
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_a_folder_named_by_the_user_is_used(tmp_path: Path, environment: dict[str, str]) -> None:
    own = {INDUCTOR: str(tmp_path / "own"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    found = output_of({**environment, **own}, "-c", IMPORTS)
    assert found == [str(tmp_path / "own"), str(tmp_path / "triton")]
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_without_a_cache_folder_code_is_kept_until_the_end(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """The code is in this process's own folder.

    Only its owner can open it, and it is removed at the end.
    """
    (tmp_path / "cache").write_text("a file")
    mode = "print(oct(os.stat(os.path.dirname(cache_dir())).st_mode & 0o777))"
    folder, _, permissions = output_of(environment, "-c", IMPORTS + mode)
    assert Path(folder).is_relative_to(tmp_path / "temporary")
    assert permissions == "0o700"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_choosing_the_folder_does_not_create_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(INDUCTOR, "")
    keep_compiled_code()
    assert os.environ[INDUCTOR] == str(tmp_path / "cache" / "ppll-run" / "inductor")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for elsewhere in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
        assert cache_folder() == Path("/home/someone/.cache/ppll-run")
    monkeypatch.setenv("HOME", "nowhere")
    assert cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path("/var/cache/me/ppll-run")


def test_a_folder_can_be_made_below_one_that_can_be_written(tmp_path: Path) -> None:
    assert cache._can_be_made(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    assert not cache._can_be_made(tmp_path / "file" / "b")
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        assert not cache._can_be_made(tmp_path / "closed" / "b")
