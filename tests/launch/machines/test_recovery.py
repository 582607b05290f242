"""`recover=stage` on two machines with two stages each; both launchers are on this machine.

Stages 1 and 2 exchange messages with the other machine. Stages 0 and 3 do not.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import Runner, assert_same_run, own_model
from tests.launch.machines.conftest import USUAL, Start, ended, printed, result_of
from tests.launch.machines.test_machines import FAST

COMMON = ["schedule=ppll", "gpus=4", *USUAL, "epochs=2", "checkpoint.every=2"]
STAGE = ["recover=stage", "recover.every=2"]
NOTE = "recover=stage: a failure of stage 1 or stage 2 ends the run"

FAST_LAUNCHER = f"""{FAST}
from types import SimpleNamespace
from time import monotonic
from ppll_cli.launch import restarts
from ppll_cli.worker import worker
worker.perf_counter = clock.perf_counter
restarts.time = SimpleNamespace(perf_counter=clock.perf_counter, monotonic=monotonic)
"""
"""A patch with a clock that is far ahead, also for the times of restarts."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")


def killed_once(unit: str, file: Path) -> list[str]:
    """Return overrides for a model that once kills a worker in its third batch.

    Args:
        unit: The unit whose worker is killed.
        file: A file that the model creates first. If it exists, the model kills no worker.
    """
    return own_model("Faulty", unit=unit, act="kill", once=file, layers=4)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("unit", "stage"),
    [("first", 0), ("fourth", 3)],
    ids=["leader", "follower"],
)
def test_a_killed_stage_between_stages_of_its_machine_restarts_alone(
    start: Start, run: Runner, folder: Path, tmp_path: Path, unit: str, stage: int
) -> None:
    """The clock of machine 1 is far ahead, but the timeline shows the restart at its time."""
    once = tmp_path / "once"
    arguments = [*COMMON, *STAGE, *killed_once(unit, once), f"hydra.run.dir={folder}"]
    sessions = start(*arguments, "timeline=true", first={1: FAST_LAUNCHER})
    assert ended(sessions, 120) == [0, 0], printed(sessions)
    assert once.exists()
    found = result_of(folder)
    assert_same_run(found, run(*COMMON, *killed_once(unit, once)))
    (restart,) = found.summary["restarts"]
    assert (restart["stage"], restart["seconds"] > 0) == (stage, True)
    assert "TrainBatch(step=2" in restart["batch"]
    told = sessions[0].printed()
    assert NOTE in told
    where = f"stage {stage} (cpu of machine {stage // 2} ("
    assert told.count(f"ppll-run: {where}") == 1
    assert f"  stage {stage} restarts; the other stages wait for it" in told
    assert f"stage {stage} continues after " in told
    assert sessions[1].printed() == ""
    events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]
    assert [bar["tid"] for bar in bars if bar["name"] == "restart"] == [stage]
    assert {bar["tid"] for bar in bars} == {0, 1, 2, 3}
    assert max(bar["ts"] for bar in bars) - min(bar["ts"] for bar in bars) < 100e6


NO_ROOM = """
from types import SimpleNamespace
from ppll_cli.transport import memory
memory.shutil = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(total=1 << 20, free=1 << 10))
"""


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["stage", "auto"])
def test_a_machine_without_shared_memory_refuses_the_start(
    start: Start, folder: Path, tmp_path: Path, recover: str
) -> None:
    model = killed_once("fourth", tmp_path / "once")
    arguments = [*COMMON, *model, f"recover={recover}", f"hydra.run.dir={folder}"]
    sessions = start(*arguments, first={1: NO_ROOM})
    assert ended(sessions) == [2, 2], printed(sessions)
    for session in sessions:
        (line,) = session.printed().splitlines()
        assert line.startswith("ppll-run: recover=stage: machine 1's channels and snapshots take")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "stage"),
    [("second", 1), ("third", 2)],
    ids=["leader", "follower"],
)
def test_a_killed_stage_next_to_another_machine_ends_the_run(
    start: Start, folder: Path, tmp_path: Path, unit: str, stage: int
) -> None:
    killed = killed_once(unit, tmp_path / "once")
    sessions = start(*COMMON, *STAGE, *killed, f"hydra.run.dir={folder}")
    assert ended(sessions) == [1, 1], printed(sessions)
    for session in sessions:
        said = session.printed()
        assert said.count("ppll-run: stage") == 1
        assert f"ppll-run: stage {stage} (cpu of machine {stage // 2} (" in said
        assert "restarts; the other" not in said
    summary = result_of(folder).summary
    assert (summary["status"], summary["restarts"]) == ("failed", [])
