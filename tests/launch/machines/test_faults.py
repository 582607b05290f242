"""Faults that a run on several machines must survive or report.

All launchers are on this machine.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.machines import fleet
from ppll_cli.launch.machines.rendezvous import Rendezvous
from scripts.benchmarks.namespaces import ADDRESSES, NamespaceError, Namespaces, namespaces
from scripts.benchmarks.session import Session
from tests.conftest import Runner, assert_same_run, own_model, resumed
from tests.launch.machines.conftest import (
    ENVIRONMENT,
    FOUND_S,
    HOST,
    LONG,
    USUAL,
    Start,
    ended,
    free_port,
    printed,
    result_of,
    wait_for_training,
)

HASTY = """
from ppll_cli.launch.machines import fleet
fleet.SILENT_S, fleet.OWN_GAP_S, fleet.LEAVING_S = 4.0, 2.0, 4.0
"""
"""Code after which a launcher counts other machines as gone sooner than usual."""

KILL, STOP, CONTINUE = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")


@pytest.mark.slow
def test_a_killed_worker_of_another_machine_is_reported_once(start: Start, folder: Path) -> None:
    """There is one report, although several processes notice that the worker has ended."""
    sessions = start(*LONG, f"hydra.run.dir={folder}")
    wait_for_training(sessions)
    sessions[1].signal(KILL, sessions[1].workers()[0].pid)
    assert ended(sessions) == [1, 1], printed(sessions)
    how = "gone (killed by SIGKILL"
    cause = f"stage 1 (cpu of machine 1 ({HOST})): the worker process is {how}"
    for session in sessions:
        assert session.printed().count("ppll-run: stage") == 1
        assert f"ppll-run: {cause}" in session.printed()
    screen = sessions[0].printed().partition(cause)[2].splitlines()
    told = [line.partition(": ")[0].strip() for line in screen[1:]]
    assert told == ["phase", "batch", "stage 0 meanwhile", "log", "to continue"]
    assert screen[-1].endswith(f" resume={folder}")
    assert result_of(folder).summary["status"] == "failed"


@pytest.mark.slow
def test_a_killed_fork_server_of_another_machine_is_named_as_the_cause(
    start: Start, folder: Path
) -> None:
    """The message once named the healthy worker of machine 0, which had lost its connection."""
    sessions = start(*LONG, f"hydra.run.dir={folder}")
    wait_for_training(sessions)
    server = sessions[1].server()
    assert server is not None
    sessions[1].signal(KILL, server.pid)
    assert ended(sessions) == [1, 1], printed(sessions)
    cause = f"ppll-run: machine 1 ({HOST}): multiprocessing's fork server is gone"
    assert cause in sessions[0].printed()
    assert "ppll-run: stage" not in sessions[0].printed()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "number"), [(1, STOP), (0, KILL), (0, STOP)], ids=["1-stop", "0-kill", "0-stop"]
)
def test_a_killed_or_stopped_launcher_ends_the_run(
    start: Start, folder: Path, machine: int, number: signal.Signals
) -> None:
    """The launcher of machine 0 also has the store.

    A stopped launcher ends too, once it continues.
    """
    sessions = start(*LONG, f"hydra.run.dir={folder}", first={0: HASTY, 1: HASTY})
    wait_for_training(sessions)
    hurt, other = sessions[machine], sessions[1 - machine]
    hurt.signal(number, hurt.pid)
    assert ended([other]) == [1], printed(sessions)
    assert other.printed().count(f"machine {machine} ({HOST}) has given no sign of life") == 1
    hurt.signal(CONTINUE, hurt.pid)
    assert ended([hurt]) == [-KILL if number == KILL else 1], printed(sessions)


@pytest.mark.slow
def test_a_run_can_resume_without_a_lost_machine(start: Start, run: Runner, folder: Path) -> None:
    """The run continues on one machine with another `gpus`, and trains the same."""
    common = [*LONG, "schedule=ppll", "local.modules=4", "checkpoint.every=5"]
    sessions = start(*common, f"hydra.run.dir={folder}", first={0: HASTY, 1: HASTY})
    last = folder / "checkpoints" / "last"  # this link always exists
    assert sessions[0].wait_until(last.exists), printed(sessions)
    sessions[1].signal(KILL, *(each.pid for each in sessions[1].processes()))
    assert ended(sessions) == [1, -KILL], printed(sessions)
    assert f"machine 1 ({HOST}) has given no sign of life" in sessions[0].printed()
    hurt = result_of(folder)
    steps = int(last.resolve().name.removeprefix("step-"))
    until = f"max_steps={steps + 3}"
    assert_same_run(resumed(hurt, "gpus=1", until), run(*common, until))


@pytest.mark.slow
def test_machines_that_are_suspended_together_continue(start: Start, folder: Path) -> None:
    """`scontrol suspend` does this. It lasts longer than a machine may give no sign of life."""
    clocks = "from ppll_cli.job import pulse\nfrom ppll_cli.launch.machines import fleet\n"
    clocks += "pulse.ALIVE_LIMIT_S, pulse._OWN_GAP_S = 3.0, 1.5\n"
    clocks += "fleet.SILENT_S, fleet.OWN_GAP_S = 3.0, 1.5\n"
    sessions = start(*LONG, f"hydra.run.dir={folder}", first=dict.fromkeys(range(2), clocks))
    wait_for_training(sessions)
    for session in sessions:
        os.killpg(session.pid, STOP)
    stopped_s, before = monotonic(), sessions[0].printed()
    while monotonic() < stopped_s + 4.0:
        sleep(0.1)
    for session in sessions:
        os.killpg(session.pid, CONTINUE)
    continued_s = monotonic()

    def trains() -> bool:
        late = monotonic() > continued_s + 2.0 * 3.0  # an error would have ended the run
        return late and sessions[0].printed().count("\n") > before.count("\n") + 1

    assert sessions[0].wait_until(trains), printed(sessions)
    sessions[1].signal(signal.SIGINT, sessions[1].pid)  # the interrupt may be sent to any machine
    assert ended(sessions) == [130, 130], printed(sessions)
    assert result_of(folder).summary["status"] == "interrupted"
    assert (folder / "checkpoints" / "last" / "manifest.json").exists()


@pytest.mark.slow
def test_a_missing_machine_is_reported_by_the_others(start: Start, folder: Path) -> None:
    """All machines that have joined print the message."""
    limit = {"PPLL_MEETING_S": "5"}
    arguments = [*LONG, f"hydra.run.dir={folder}"]
    sessions = start(*arguments, machines=3, absent=[1], environment=limit)
    assert ended(sessions, 60) == [2, 2], printed(sessions)
    said = "ppll-run: nnodes=3: machine 1 did not join within 5 s\n"
    assert printed(sessions) == [said, said]
    assert not folder.exists()


@pytest.mark.slow
def test_a_missing_machine_0_is_reported(start: Start, folder: Path) -> None:
    limit = {"PPLL_MEETING_S": "2"}
    arguments = [*LONG, f"hydra.run.dir={folder}"]
    # The program tells torch at its import to print no C++ messages.
    sessions = start(*arguments, absent=[0], environment=limit, cold=True)
    assert ended(sessions, 60) == [2], printed(sessions)
    (line,) = sessions[0].printed().splitlines()
    assert line.startswith("ppll-run: MASTER_ADDR=127.0.0.1:")
    assert "machine 0, which runs the store, did not join within 2 s" in line


def test_a_store_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example is a store whose launcher was stopped before the other machines joined."""
    monkeypatch.setattr(fleet, "LEAVING_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        where = Rendezvous(1, 2, "127.0.0.1", port, hosted=False, limit_s=1.0)
        problem = r"MASTER_ADDR=.*: the store of torch.distributed there does not answer"
        with pytest.raises(ConfigError, match=problem):
            fleet.Fleet(where)
    # The abandoned thread prints something once its connection is cut. Wait, so that this test gets
    # it.
    for thread in threading.enumerate():
        if thread.name == "ppll-fleet":
            thread.join(60.0)
            assert not thread.is_alive()


def torchrun(
    number: int, addresses: Sequence[str], *arguments: str, restarts: int = 0
) -> list[str]:
    """Return the command of docs/machines.md.

    Namespaces know no host names, so it has `--local-addr`.
    """
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={addresses[0]}"]
    meet += [f"--rdzv-conf=is_host={number == 0:d}"]
    meet += [f"--local-addr={addresses[number].partition(':')[0]}", f"--max-restarts={restarts}"]
    return [*run, *meet, "-m", "ppll_cli", *arguments]


@pytest.fixture
def sessions() -> Iterator[ExitStack]:
    """Return a stack for sessions. All of their processes end with the test."""
    with ExitStack() as held:
        yield held


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_torchrun_restarts_a_run_from_its_checkpoint(
    sessions: ExitStack, run: Runner, folder: Path, tmp_path: Path
) -> None:
    """One worker is killed once, on either machine, in its third batch, after two checkpoints."""
    killed = tmp_path / "killed"
    model = own_model("Faulty", unit="third", act="kill", once=killed)
    common = ["schedule=ppll", "gpus=2", *USUAL, *model, "epochs=1", "checkpoint.every=1"]
    arguments = [*common, f"hydra.run.dir={folder}"]
    addresses = [f"127.0.0.1:{free_port()}", "127.0.0.1"]
    both = [
        sessions.enter_context(
            Session(
                torchrun(number, addresses, *arguments, restarts=1),
                tmp_path / f"printed-{number}",
                ENVIRONMENT,
            )
        )
        for number in range(2)
    ]
    assert ended(both, 120) == [0, 0], printed(both)
    assert killed.exists()
    assert any("the worker process is gone (killed by SIGKILL" in said for said in printed(both))
    assert_same_run(result_of(folder), run(*common))


@pytest.fixture
def both() -> Iterator[Namespaces]:
    """Return two network namespaces that are connected to each other."""
    with ExitStack() as held:
        try:
            made = held.enter_context(namespaces())
        except NamespaceError as error:
            pytest.skip(str(error))
        yield made


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_all_machines_report_a_cut_network_under_torchrun(
    both: Namespaces, sessions: ExitStack, folder: Path, tmp_path: Path
) -> None:
    arguments = [*LONG, f"hydra.run.dir={folder}"]
    addresses = [f"{ADDRESSES[0]}:29400", ADDRESSES[1]]
    started = [
        sessions.enter_context(
            Session(
                both.command(number, torchrun(number, addresses, *arguments)),
                tmp_path / f"printed-{number}",
                ENVIRONMENT,
            )
        )
        for number in range(2)
    ]
    assert started[0].wait_until(lambda: any("epoch 1/" in said for said in printed(started))), (
        printed(started)
    )
    both.cut()
    said = "has given no sign of life"
    for session in started:  # torchrun itself keeps asking its store for a while
        session.wait_until(lambda s=session: said in s.printed(), FOUND_S)  # type: ignore[misc]
        assert said in session.printed()
