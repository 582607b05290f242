"""A run on two machines that share no run directory: the second one cannot see the first one's."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ppll_cli.job import checkpoint
from ppll_cli.job.manifest import read_manifest
from scripts.benchmarks.session import Session
from tests.conftest import Runner, assert_same, assert_same_run, own_model
from tests.launch.machines.conftest import USUAL, VIT, Start, ended, result_of, wait_for_training

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it takes mount namespaces")

COMMON = ["schedule=ppll", "epochs=2", "checkpoint.every=2", "checkpoint.keep=9", *USUAL, *VIT]


HIDE = """
import ctypes, os
uid, gid, libc = os.getuid(), os.getgid(), ctypes.CDLL(None)
assert libc.unshare(0x20000 | 0x10000000) == 0
for file, text in (("setgroups", "deny"), ("uid_map", f"0 {{uid}} 1"), ("gid_map", f"0 {{gid}} 1")):
    open(f"/proc/self/{{file}}", "w").write(text)
assert libc.mount(b"none", {folder!r}.encode(), b"tmpfs", 0, None) == 0
os.environ["TMPDIR"] = {own!r}
"""
"""Code that mounts an empty folder over `folder`, in a namespace of this process's own."""


class Apart:
    """Two machines. The second one has its own folders.

    Attributes:
        folder: The folder of all runs. The second machine cannot see its files.
        own: The second machine's folder for temporary files.
    """

    def __init__(self, start: Start, folder: Path, own: Path) -> None:
        self._start, self.folder, self.own = start, folder, own

    def start(self, *arguments: str, first: str = "") -> list[Session]:
        """Start a launcher on both machines. The second one executes `first` at its start."""
        hidden = HIDE.format(folder=str(self.folder), own=str(self.own))
        return self._start(*arguments, first={1: f"{hidden}\n{first}"})

    def left(self) -> list[str]:
        """Return the names of temporary files that the second machine has not removed."""
        return sorted(path.name for path in self.own.glob("ppll-run-*"))


@pytest.fixture
def apart(start: Start, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Apart:
    # The socket of the fork server is in this folder too, so its path must be short.
    made = Apart(start, tmp_path / "shared-with-nobody", tmp_path_factory.mktemp("own"))
    made.folder.mkdir()
    mount = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none"]
    tried = subprocess.run([*mount, str(made.folder)], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no folder can be hidden here: {tried.stderr.strip()}")
    return made


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_machines_exchange_the_files_of_checkpoints(apart: Apart, run: Runner) -> None:
    """All files of a checkpoint are sent to machine 0.

    If the run resumes, machine 1 gets its files back.
    """
    sweep = ["--multirun", "seed=0,1", f"hydra.sweep.dir={apart.folder}"]
    sessions = apart.start(*COMMON, "gpus=4", *sweep, "max_steps=5")
    assert ended(sessions, 120) == [0, 0], [session.printed() for session in sessions]
    for job in range(2):
        told = f"{apart.folder / str(job)} is not shared with machine 1"
        assert sessions[0].printed().count(told) == 1
    assert apart.left() == []
    for job in range(2):
        folder = apart.folder / str(job)
        for step in (2, 4, 5):
            files = read_manifest(folder / "checkpoints" / f"step-{step}").files
            assert [file.name for file in files] == [f"stage-{n}.safetensors" for n in range(4)]
        newest = checkpoint.newest(folder)
        assert newest is not None
        assert newest.step == 5

    sessions = apart.start(f"resume={apart.folder / '1'}", "max_steps=9")
    assert ended(sessions, 120) == [0, 0], [session.printed() for session in sessions]
    found, expected = result_of(apart.folder / "1"), run(*COMMON, "gpus=4", "seed=1", "max_steps=9")
    assert_same_run(found, expected)
    models = [each.run_dir / "model.safetensors" for each in (found, expected)]
    assert_same(*map(load_file, models))
    assert apart.left() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stage_that_restarts_sends_each_file_once(
    apart: Apart, run: Runner, tmp_path: Path
) -> None:
    """Stage 3 is killed in its third batch, and repeats the checkpoints since its snapshot."""
    model = own_model("Faulty", unit="fourth", act="kill", once=tmp_path / "once", layers=4)
    common = ["schedule=ppll", "gpus=4", *USUAL, *model, "epochs=1", "checkpoint.every=1"]
    recover = ["recover=stage", "recover.every=9", "checkpoint.keep=9"]
    folder = apart.folder / "run"
    sessions = apart.start(*common, *recover, f"hydra.run.dir={folder}")
    assert ended(sessions, 120) == [0, 0], [session.printed() for session in sessions]
    found = result_of(folder)
    assert [restart["stage"] for restart in found.summary["restarts"]] == [3]
    for step in range(1, found.summary["steps"] + 1):
        files = read_manifest(folder / "checkpoints" / f"step-{step}").files
        assert [file.name for file in files] == [f"stage-{n}.safetensors" for n in range(4)]
    assert_same_run(found, run(*common))
    assert apart.left() == []


@pytest.mark.slow
def test_an_interrupt_still_ends_with_a_checkpoint(apart: Apart) -> None:
    folder = apart.folder / "run"
    arguments = [
        *COMMON,
        "gpus=2",
        "epochs=100000",
        "checkpoint.every=null",
        f"hydra.run.dir={folder}",
    ]
    sessions = apart.start(*arguments)
    wait_for_training(sessions)
    assert len(apart.left()) == 1
    sessions[1].signal(signal.SIGINT, sessions[1].pid)
    assert ended(sessions) == [130, 130]
    newest = checkpoint.newest(folder)
    assert newest is not None
    assert newest.step == result_of(folder).summary["steps"]
    assert apart.left() == []


DAMAGING = """
from ppll_cli.launch.machines.parcels import Parcels

send = Parcels.send

def damage(self, path, remove=False):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return send(self, path, remove)

Parcels.send = damage
"""


@pytest.mark.slow
def test_a_file_that_arrives_damaged_fails_the_run(apart: Apart) -> None:
    folder = apart.folder / "run"
    sessions = apart.start(*COMMON, "gpus=2", f"hydra.run.dir={folder}", first=DAMAGING)
    assert ended(sessions, 120) == [1, 1], [session.printed() for session in sessions]
    name = f"machine 1 ({socket.gethostname()})"
    problem = f"cannot be received from {name}: it arrived damaged: "
    for session in sessions:
        assert problem in session.printed()
    assert problem in result_of(folder).summary["error"]
    assert list((folder / "checkpoints").iterdir()) == []
    assert apart.left() == []
