"""A run whose processes are killed, stopped or terminated from outside."""

import csv
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import Pipe, RawValue
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppll_cli.job.job import Seat
from ppll_cli.job.links import Links
from ppll_cli.job.pulse import Pulse
from ppll_cli.worker import process
from scripts.benchmarks.session import Session, ppll_run
from tests.conftest import own_model
from tests.data.class_pictures import write_classes
from tests.warm import WarmSession

ROOT = Path(__file__).parents[2]
PLACES = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
DATA = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
DATA += ["batch_size=8", "device=cpu", "threads=1", "epochs=100000", "eval_every=1"]
DATA += ["timeline=false"]
VIT = ["model.dim=16", "model.depth=2", "model.heads=2"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")

Start = Callable[..., Session]


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for temporary files."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def start(tmp_path: Path, temporary: Path) -> Iterator[Start]:
    """Return a function that starts ppll-run in its own session. It ends with the test.

    With `cold`, its processes still have to import torch.
    """
    with ExitStack() as sessions:

        def start(*arguments: str, cold: bool = False) -> Session:
            environment = {"PYTHONPATH": PLACES, "TMPDIR": str(temporary)}
            output = tmp_path / "printed"
            if cold:
                session = Session(ppll_run(*arguments), output, environment)
            else:
                session = WarmSession(arguments, output, environment)
            return sessions.enter_context(session)

        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the run directory."""
    return tmp_path / "run"


def training(folder: Path, *overrides: str) -> list[str]:
    return [*DATA, *overrides, f"hydra.run.dir={folder}"]


def wait_for_training(session: Session) -> None:
    assert session.wait_until(lambda: "epoch 1/" in session.printed()), session.printed()


def wait_for_server(session: Session) -> None:
    """Wait until the fork server is importing modules."""

    def imports() -> bool:
        server = session.server()
        return server is not None and "libtorch" in Path(f"/proc/{server.pid}/maps").read_text()

    assert session.wait_until(imports), session.printed()


def left_in(temporary: Path) -> list[Path]:
    """Return the temporary files that are left, without torch's cache of code, which may stay."""
    return [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]


def status_of(folder: Path) -> object:
    return json.loads((folder / "summary.json").read_text())["status"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start-up", "training"])
def test_all_processes_end_when_the_parent_is_killed(
    start: Start, folder: Path, moment: str
) -> None:
    session = start(*training(folder, *VIT, "gpus=2"), cold=moment == "start-up")
    if moment == "training":
        wait_for_training(session)
        assert len(session.workers()) == 2
    else:
        wait_for_server(session)
    session.signal(signal.SIGKILL, session.pid)
    assert session.wait() == -signal.SIGKILL
    assert session.left() == []


def test_a_worker_that_fails_because_its_parent_is_gone_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The worker once printed an error about its failed attempt to report an error."""
    monkeypatch.setattr(process, "_stay_with_parent", lambda *_: None)
    here, there = Pipe()
    here.close()
    job: Any = SimpleNamespace(device=lambda _: "cpu")  # fails at its first use
    with pytest.raises(SystemExit):
        process.main(job, Seat(0), Links(parent=there, stop=RawValue("b", 0), pulse=Pulse()))
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_a_short_message(start: Start, folder: Path) -> None:
    session = start(*training(folder, *VIT, "gpus=3"))
    wait_for_training(session)
    session.signal(signal.SIGKILL, session.workers()[1].pid)
    assert session.wait() == 1
    assert session.left() == []
    cause, *screen = session.printed().partition("ppll-run: ")[2].splitlines()
    assert cause.startswith("stage 1 (cpu): the worker process is gone (killed by SIGKILL")
    assert [line.partition(": ")[0] for line in screen] == [
        "  phase",
        "  batch",
        "  stage 0 meanwhile",
        "  stage 2 meanwhile",
        "  log",
        "  to continue",
    ]
    assert screen[-2].endswith(f": {folder / 'ppll-run.log'}")
    assert screen[-1].endswith(f" -m ppll_cli resume={folder}")
    assert status_of(folder) == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["loader", "worker"])
def test_a_killed_loader_ends_the_run_and_loaders_end_with_their_worker(
    start: Start, folder: Path, tmp_path: Path, killed: str
) -> None:
    write_classes(tmp_path / "own" / "train", {"a": range(20), "b": range(20)})
    write_classes(tmp_path / "own" / "test", {"a": [1], "b": [2]})
    data = ["data=imagefolder", f"data.root={tmp_path / 'own'}", "data.size=8", "data.loaders=2"]
    shape = [*VIT, "gpus=2", "batch_size=8", "epochs=100000", "eval_every=1", "timeline=false"]
    run = ["device=cpu", "threads=1", f"hydra.run.dir={folder}"]
    session = start(*data, *shape, *run)
    wait_for_training(session)
    first = session.workers()[0].pid
    loaders = [each for each in session.processes() if each.parent == first]
    assert len(loaders) == 2
    session.signal(signal.SIGKILL, loaders[1].pid if killed == "loader" else first)
    assert session.wait() == 1
    there = {each.pid for each in session.processes()}
    assert not there & {each.pid for each in loaders}  # the program waited for these processes
    assert session.left() == []
    reason = (
        "the worker process is gone"
        if killed == "worker"
        else ("RunFailedError: a data loader is gone (killed by SIGKILL; if nobody did, the system")
    )
    cause = session.printed().partition("ppll-run: ")[2]
    assert cause.startswith(f"stage 0 (cpu): {reason}")
    assert status_of(folder) == "failed"


@pytest.mark.slow
def test_a_replica_that_is_stopped_ends_the_run(start: Start, folder: Path) -> None:
    """The other workers only wait for it, and the message does not blame them."""
    session = start(*training(folder, *VIT, "gpus=4", "replicas=2"))
    wait_for_training(session)
    session.signal(signal.SIGSTOP, session.workers()[2].pid)
    assert session.wait() == 1
    assert session.left() == []
    cause, *screen = session.printed().partition("ppll-run: ")[2].splitlines()
    how = "the worker process is stopped: no sign of life"
    assert cause.startswith(f"stage 1 replica 0 (cpu): {how}")
    others = [line for line in screen if " meanwhile: " in line]
    names = [line.split(" meanwhile")[0].strip() for line in others]
    assert names == ["stage 0 replica 0", "stage 0 replica 1", "stage 1 replica 1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forkserver", "resource_tracker"])
def test_a_killed_helper_process_of_multiprocessing_ends_the_run(
    start: Start, folder: Path, name: str
) -> None:
    """If the fork server is gone, all workers look dead, although they live."""
    session = start(*training(folder, *VIT, "gpus=2"))
    wait_for_training(session)
    (found,) = [
        each
        for each in session.processes()
        if each.parent == session.pid and f"multiprocessing.{name}" in each.command
    ]
    session.signal(signal.SIGKILL, found.pid)
    assert session.wait() == 1
    assert session.left() == []
    named = name.replace("forkserver", "fork server").replace("_", " ")
    assert f"ppll-run: multiprocessing's {named} is gone" in session.printed()
    assert f" -m ppll_cli resume={folder}" in session.printed()
    assert "Traceback" not in session.printed()
    assert status_of(folder) == "failed"


@pytest.mark.slow
def test_an_interrupt_ends_a_sweep_with_a_checkpoint(start: Start, folder: Path) -> None:
    """Replicas must stop after the same batch.

    Otherwise they would wait for each other for ever.
    """
    sweep = ["--multirun", "seed=0,1", f"hydra.sweep.dir={folder}"]
    session = start(*DATA, *VIT, "gpus=4", "replicas=2", *sweep)
    wait_for_training(session)
    session.signal(signal.SIGINT, session.pid)
    assert session.wait() == 128 + signal.SIGINT
    assert session.left() == []
    assert status_of(folder / "0") == "interrupted"
    assert (folder / "0" / "checkpoints" / "last" / "manifest.json").exists()
    assert not (folder / "1").exists()


@pytest.mark.slow
def test_a_killed_sweep_can_be_resumed_and_compared(start: Start, folder: Path) -> None:
    """One job was complete, one was in training, and one had not begun."""
    case = [*(each for each in DATA if not each.startswith("epochs=")), *VIT, "epochs=30"]
    case += ["eval_every=30", "checkpoint.every=10", "--multirun", "schedule=bp,gpipe,ppll"]
    session = start(*case, f"hydra.sweep.dir={folder}")
    trains = (folder / "1" / "checkpoints").glob
    assert session.wait_until(lambda: any(trains("step-*"))), session.printed()
    session.signal(signal.SIGKILL, session.pid)
    assert session.wait() == -signal.SIGKILL
    assert session.left() == []
    assert status_of(folder / "0") == "completed"
    assert not (folder / "1" / "summary.json").exists()
    assert not (folder / "2").exists()
    complete = (folder / "0" / "summary.json").stat()

    session = start("--multirun", f"resume={folder}")
    assert session.wait() == 0, session.printed()
    assert "continuing after step " in session.printed()
    assert (folder / "0" / "summary.json").stat() == complete
    unhurt = folder.with_name("unhurt")
    session = start(*case, f"hydra.sweep.dir={unhurt}")
    assert session.wait() == 0, session.printed()
    assert compared(folder) == compared(unhurt)
    for name in ("0", "1", "2"):
        model = Path(name, "model.safetensors")
        assert (folder / model).read_bytes() == (unhurt / model).read_bytes()


def compared(sweep: Path) -> list[list[str]]:
    """Return a sweep's final comparison, without values that depend on time, memory or place."""
    keys = ("run", "status", "comparable", "schedule", "gpus", "threads", "settings", "best_metric")
    rows = list(csv.DictReader((sweep / "comparison.csv").read_text().splitlines()))
    return [[row[key] for key in keys] for row in rows]


@pytest.mark.slow
def test_a_second_interrupt_ends_a_run_at_once(start: Start, folder: Path) -> None:
    """After the first interrupt, the program waits for a batch that never ends."""
    model = own_model("Faulty", unit="second", act="hang")
    session = start(*training(folder, *model, "gpus=3", "checkpoint.every=2"))
    assert session.wait_until((folder / "checkpoints" / "step-2").exists), session.printed()
    session.signal(signal.SIGINT, session.pid)
    assert session.wait_until(lambda: "again to stop at once" in session.printed())
    session.signal(signal.SIGINT, session.pid)
    assert session.wait() == 128 + signal.SIGINT
    assert session.left() == []
    assert f" -m ppll_cli resume={folder}" in session.printed()
    assert "Traceback" not in session.printed()
    assert status_of(folder) == "interrupted"


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_a_signal_during_startup_ends_the_program_and_leaves_nothing(
    start: Start, folder: Path, temporary: Path, number: signal.Signals
) -> None:
    session = start(*training(folder, *VIT, "gpus=2"), cold=True)
    wait_for_server(session)
    session.signal(number, session.pid)
    assert session.wait() == 128 + number
    assert session.left() == []
    assert session.printed() == f"ppll-run: stopped by signal {number}\n"
    assert left_in(temporary) == []


@pytest.mark.slow
def test_a_fork_server_stopped_during_startup_ends_the_run(
    start: Start, folder: Path, temporary: Path
) -> None:
    """The program once waited for the stopped server for ever."""
    session = start(*training(folder, *VIT, "gpus=2"), cold=True)
    wait_for_server(session)
    server = session.server()
    assert server is not None
    session.signal(signal.SIGSTOP, server.pid)
    assert session.wait() == 1
    assert session.left() == []
    cause, *screen = session.printed().partition("ppll-run: ")[2].splitlines()
    assert cause == "multiprocessing's fork server was stopped (SIGSTOP)"
    assert [line.partition(": ")[0] for line in screen] == ["  log", "  to continue"]
    assert status_of(folder) == "failed"
    assert left_in(temporary) == []
