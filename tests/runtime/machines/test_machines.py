"""A run on two machines: two launchers, here on one, and in two network namespaces."""

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ppll_cli.benchmarks.namespaces import (
    ADDRESSES,
    NamespaceError,
    Namespaces,
    namespaces,
)
from ppll_cli.benchmarks.session import Session
from tests.conftest import Runner, assert_same_run, resumed
from tests.runtime.machines.conftest import (
    ENVIRONMENT,
    FOUND_S,
    USUAL,
    VIT,
    Start,
    ended,
    result_of,
    wait_for_training,
)

LONG = [*USUAL, *VIT, "gpus=4", "epochs=100000"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")

CASES = {
    "ppll": ["fba=on", "local.modules=4", "model=resnet32", "model.depth=14"],
    "gpipe": ["replicas=2", "optim.clip_norm=0.1", *VIT],
}


@pytest.mark.parametrize("schedule", CASES)
def test_two_machines_learn_what_one_does(
    start: Start, run: Runner, folder: Path, schedule: str
) -> None:
    common = [f"schedule={schedule}", "gpus=4", "epochs=4", *USUAL, *CASES[schedule]]
    sessions = start(*common, "max_steps=7", f"hydra.run.dir={folder}")
    assert ended(sessions, 120) == [0, 0], [session.printed() for session in sessions]
    expected = run(*common, "max_steps=7")
    found = result_of(folder)
    assert_same_run(found, expected)
    for key in ("edges", "per_module", "gpus", "steps"):
        assert found.summary[key] == expected.summary[key]
    assert sessions[1].printed() == ""
    assert found.summary["machines"] == 2
    assert [stage["machine"] for stage in found.summary["stages"]] == [0, 0, 1, 1]
    if schedule == "gpipe":  # and goes on where there is only one machine
        longer = run(*common, "max_steps=12")
        assert_same_run(resumed(found, "max_steps=12"), longer)


def test_a_worker_of_another_machine_that_is_gone(start: Start, folder: Path) -> None:
    sessions = start(*LONG, f"hydra.run.dir={folder}")
    wait_for_training(sessions)
    sessions[1].signal(signal.SIGKILL, sessions[1].workers()[0].pid)
    assert ended(sessions) == [1, 1]
    where = f"stage 2 (cpu of machine 1 ({socket.gethostname()}))"
    for session in sessions:
        assert f"{where}: the worker process is gone (killed by SIGKILL" in session.printed()
    assert "  phase: " in sessions[0].printed()
    assert f"ppll-run resume={folder}" in sessions[0].printed()
    assert result_of(folder).summary["status"] == "failed"


def test_a_launcher_that_is_gone(start: Start, folder: Path) -> None:
    sessions = start(*LONG, f"hydra.run.dir={folder}")
    wait_for_training(sessions)
    sessions[1].signal(signal.SIGKILL, sessions[1].pid)
    assert ended(sessions)[0] == 1
    said = f"machine 1 ({socket.gethostname()}) has given no sign of life"
    assert said in sessions[0].printed()


def test_an_interrupt_of_another_machine_ends_the_run_with_a_checkpoint(
    start: Start, folder: Path
) -> None:
    sessions = start(*LONG, f"hydra.run.dir={folder}")
    wait_for_training(sessions)
    sessions[1].signal(signal.SIGINT, sessions[1].pid)
    assert ended(sessions) == [130, 130]
    assert result_of(folder).summary["status"] == "interrupted"
    assert (folder / "checkpoints" / "last" / "manifest.json").exists()


OTHER_VERSION = """
import sys
from ppll_cli.runtime.machines import fleet
fleet.__version__ = "0.0"
if __name__ == "__main__":
    from ppll_cli.app import main
    main()
"""


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["modle=vit"], "modle=vit: there is no such key"),
        (["gpus=4"], "ppll-run=0.0: is what machine 1"),
    ],
    ids=["configuration", "versions"],
)
def test_what_is_refused_is_refused_everywhere(
    start: Start, folder: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    program = {}
    if "0.0" in problem:
        (tmp_path / "other.py").write_text(OTHER_VERSION)
        program = {1: [sys.executable, str(tmp_path / "other.py")]}
    sessions = start(*USUAL, *arguments, f"hydra.run.dir={folder}", program=program)
    assert ended(sessions, 120) == [2, 2], [session.printed() for session in sessions]
    for session in sessions:
        (line,) = session.printed().splitlines()
        assert line.startswith(f"ppll-run: {problem}")
    assert not folder.exists()


@pytest.fixture
def both() -> Iterator[Namespaces]:
    """Two network namespaces with a link between them."""
    with ExitStack() as held:
        try:
            made = held.enter_context(namespaces())
        except NamespaceError as error:
            pytest.skip(str(error))
        yield made


def torchrun(number: int, *arguments: str) -> list[str]:
    """The command that docs/machines.md gives; in a namespace no name leads to itself."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400"]
    meet += [f"--rdzv-conf=is_host={number == 0:d}", f"--local-addr={ADDRESSES[number]}"]
    return [*run, *meet, "-m", "ppll_cli", *arguments]


@pytest.mark.timeout(180)
def test_torchrun_over_a_link_that_goes_down(
    both: Namespaces, folder: Path, tmp_path: Path
) -> None:
    arguments = [*LONG, f"hydra.run.dir={folder}"]
    with ExitStack() as held:
        sessions = [
            held.enter_context(
                Session(
                    both.command(number, torchrun(number, *arguments)),
                    tmp_path / f"printed-{number}",
                    ENVIRONMENT,
                )
            )
            for number in range(2)
        ]
        first = next(
            session
            for session in sessions
            if session.wait_until(lambda s=session: folder.exists(), 100)  # type: ignore[misc]
        )
        assert first.wait_until(
            lambda: any("epoch 1/" in session.printed() for session in sessions)
        ), [session.printed() for session in sessions]
        both.cut()
        said = "has given no sign of life"
        for session in sessions:  # torchrun itself goes on asking its store for a while
            assert session.wait_until(lambda s=session: said in s.printed(), FOUND_S) or (  # type: ignore[misc]
                said in session.printed()
            )
