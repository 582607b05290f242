"""A run on several machines trains the same as on one. The launchers are all on this machine."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import Runner, assert_same_run, own_model, resumed
from tests.data.scene_files import write_fashion
from tests.launch.machines.conftest import PLAIN, USUAL, VIT, Start, ended, printed, result_of

RESNET = ["model=resnet32", "model.depth=14"]
SCENES = ["data=fashion_scenes", "data.pictures=6", "data.test_pictures=2", "data.side=64"]
SCENES += ["data.short_side=64", "data.long_side=64", "batch_size=4", "eval_every=1"]  # 4 + 2

FAST = """
from time import perf_counter
from ppll_cli.worker import clock
from ppll_cli.transport import groups
clock.perf_counter = groups.perf_counter = lambda: perf_counter() + 1000.0
"""
"""A patch with a clock that is far ahead, as on a machine that was started much earlier."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is seen from /proc")


@pytest.mark.slow  # `tests/launch/test_wiring.py` has faster tests, with one launcher
@pytest.mark.parametrize(
    ("schedule", "machines", "case", "places"),
    [
        (
            "ppll",
            3,
            [*RESNET, "fba=on", "local.modules=4", "gpus=4", "timeline=true"],
            [0, 0, 1, 2],
        ),
        ("gpipe", 2, [*VIT, "gpus=4", "replicas=2", "optim.clip_norm=0.1"], [0, 0, 1, 1]),
    ],
    ids=["ppll", "replicas"],
)
def test_several_machines_train_the_same_as_one(
    start: Start,
    run: Runner,
    folder: Path,
    tmp_path: Path,
    schedule: str,
    machines: int,
    case: list[str],
    places: list[int],
) -> None:
    """If there are three, the middle one receives from one machine and sends to another."""
    common = [f"schedule={schedule}", "epochs=4", *USUAL, *case]
    first = {1: FAST} if "timeline=true" in case else {}
    arguments = [*common, "max_steps=7", f"hydra.run.dir={folder}"]
    sessions = start(*arguments, machines=machines, first=first)
    assert ended(sessions, 120) == [0] * machines, printed(sessions)
    expected = run(*common, "max_steps=7")
    found = result_of(folder)
    assert_same_run(found, expected)
    for key in ("edges", "per_module", "gpus", "steps"):
        assert found.summary[key] == expected.summary[key]
    assert printed(sessions)[1:] == [""] * (machines - 1)
    assert found.summary["machines"] == machines
    assert [stage["machine"] for stage in found.summary["stages"]] == places
    if "timeline=true" in case:
        events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
        names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
        assert names == [f"stage {n} (machine {place} cpu)" for n, place in enumerate(places)]
        spans = [event for event in events if event["ph"] == "X"]
        assert {event["tid"] for event in spans} == {*range(len(places))}
        apart_s = max(e["ts"] for e in spans) / 1e6 - min(e["ts"] for e in spans) / 1e6
        assert apart_s < 60  # all times are by the same clock
    if "replicas=2" in case:  # the run resumes on a single machine
        longer = run(*common, "max_steps=12")
        assert_same_run(resumed(found, "max_steps=12"), longer)


@pytest.mark.slow
def test_targets_with_any_number_of_boxes_travel_between_machines(
    start: Start, run: Runner, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures have different numbers of boxes, and the last batch is short."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = [*SCENES, f"data.root={write_fashion(tmp_path / 'root')}"]
    model = [*own_model("own_detector.NarrowRetinaNet", width=8), "local.modules=2", "epochs=1"]
    common = ["gpus=2", *model, *PLAIN, *data]
    sessions = start("schedule=ppll", *common, f"hydra.run.dir={folder}")
    assert ended(sessions, 120) == [0, 0], printed(sessions)
    found = result_of(folder)
    assert_same_run(found, run("schedule=ppll", *common))
    assert "boxes" in found.summary["edges"][0]["names"]


OTHER_VERSION = """
from ppll_cli.prepare import spread
spread.__version__ = "0.0"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["gpus=1"], "gpus=1: leaves no worker for machine 1"),
        (["gpus=4"], "ppll-run=0.0: is the version on machine 1"),
    ],
    ids=["configuration", "versions"],
)
def test_every_launcher_refuses_a_wrong_configuration(
    start: Start, folder: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    first = {1: OTHER_VERSION} if "0.0" in problem else {}
    sessions = start(*USUAL, *arguments, f"hydra.run.dir={folder}", first=first)
    assert ended(sessions, 120) == [2, 2], printed(sessions)
    for session in sessions:
        (line,) = session.printed().splitlines()
        assert line.startswith(f"ppll-run: {problem}")
    assert not folder.exists()
