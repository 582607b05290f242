"""A tracker gets the records of a run, and cannot harm it."""

import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config.commands import pip_install
from ppll_cli.errors import ConfigError
from ppll_cli.launch.resume import recorded
from ppll_cli.leaves.nested import flat
from ppll_cli.observe import tracker as module
from ppll_cli.observe.tracker import (
    Guarded,
    Moment,
    NoTracker,
    Tracked,
    guarded,
    line_scalars,
    stage_scalars,
    tree,
)
from tests.conftest import Runner, compose_config, resumed
from tests.observe.conftest import STAGES, SUMMARY, line

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trackers.md").read_text()
TINY = ["data=synthetic", "data.size=8", "data.train_samples=24", "data.test_samples=6"]
TINY += ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=6", "epochs=2"]


class Noted(NoTracker):
    """Keeps all records that it gets. In each call it does what the test wants."""

    def __init__(self, act: Callable[[str], None] = lambda _: None) -> None:
        self.told: list[tuple[str, Any]] = []
        self.threads: set[int] = set()
        self._act = act

    def _note(self, name: str, told: Any) -> None:
        self.told.append((name, told))
        self.threads.add(threading.get_ident())
        self._act(name)

    def start(self, run: Tracked) -> None:
        self._note("start", run.run_dir)

    def metrics(self, line: Any, at: Moment) -> None:
        self._note("metrics", (line["step"], at))

    def stages(self, step: int, stages: Any, at: Moment) -> None:
        self._note("stages", (step, at))

    def end(self, summary: Any) -> None:
        self._note("end", summary["status"])

    def sweep(self, folder: Path, name: str) -> None:
        self._note("sweep", (folder, name))


def tracked(run_dir: Path, **changes: Any) -> Tracked:
    return Tracked(run_dir, {}, {"schedule": "ppll"}, "accuracy", **changes)


def told_of_a_run(tracker: Noted, run_dir: Path) -> None:
    guard = Guarded(tracker, "noted")
    guard.start(tracked(run_dir))
    guard.metrics(line(1))
    guard.stages(1, STAGES, 0.75)
    guard.metrics(line(2))
    guard.end(SUMMARY)


def test_one_thread_sends_all_records_in_order(tmp_path: Path) -> None:
    tracker = Noted()
    told_of_a_run(tracker, tmp_path)
    assert [name for name, _ in tracker.told] == ["start", "metrics", "stages", "metrics", "end"]
    assert len(tracker.threads - {threading.get_ident()}) == 1
    (_, one), (_, other), (_, last) = (told for _, told in tracker.told[1:4])
    assert (one.train_s, other.train_s, last.train_s) == (0.5, 0.75, 1.0)
    assert 0 <= last.unix_s - one.unix_s < 60


def test_training_waits_until_a_tracker_has_started(tmp_path: Path) -> None:
    """Otherwise the tracker's imports would slow down the steps whose speed is measured."""
    tracker = Noted()
    guard = Guarded(tracker, "noted")
    guard.start(tracked(tmp_path))
    assert tracker.told == [("start", tmp_path)]
    guard.end(SUMMARY)


def test_records_have_the_times_of_the_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker that starts slowly gets the records later than they were measured."""
    monkeypatch.setattr(module, "START_LIMIT_S", 0.01)
    goes_on = threading.Event()
    tracker = Noted(lambda name: _wait(goes_on) if name == "start" else None)
    guard = Guarded(tracker, "noted")
    guard.start(tracked(tmp_path))
    guard.metrics(line(1))
    before_s = time.time()
    goes_on.set()
    guard.end(SUMMARY)
    _, at = tracker.told[1][1]
    assert at.unix_s <= before_s


@pytest.mark.parametrize("method", ["start", "metrics", "stages", "end"])
@pytest.mark.parametrize("error", [ArithmeticError, SystemExit])
def test_an_error_of_a_tracker_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, error: type[BaseException]
) -> None:
    def act(name: str) -> None:
        if name == method:
            raise error("it is\nbroken")

    tracker = Noted(act)
    told_of_a_run(tracker, tmp_path)
    assert caplog.messages == [
        f"tracker=noted has failed: {error.__name__}: it is broken; the run continues without it"
    ]
    assert [name for name, _ in tracker.told].index(method) == len(tracker.told) - 1


def test_a_hanging_tracker_is_abandoned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    class Hanging(Noted):
        limit_s = 0.1

        def abandon(self) -> None:
            self.told.append(("abandon", None))
            released.set()

    tracker = Hanging(lambda name: _break(released) if name == "metrics" else None)
    told_of_a_run(tracker, tmp_path)
    assert caplog.messages == [
        "tracker=noted has failed: it has not finished 0.1 s after the end; "
        "its last data may be missing"
    ]
    assert [name for name, _ in tracker.told] == ["start", "metrics", "abandon"]


def test_a_run_waits_until_an_abandoned_tracker_has_ended(tmp_path: Path) -> None:
    """For example, wandb closes resources that belong to the whole process."""
    released, tidied = threading.Event(), threading.Event()

    class Hanging(Noted):
        limit_s = 0.1

        def abandon(self) -> None:
            released.set()

        def end(self, summary: Mapping[str, Any]) -> None:
            _wait(released)
            assert not tidied.wait(0.2)  # nobody sets this event; waiting only takes time
            tidied.set()

    told_of_a_run(Hanging(), tmp_path)
    assert tidied.is_set()


def _wait(event: threading.Event) -> None:
    assert event.wait(30)


def _break(released: threading.Event) -> None:
    _wait(released)
    raise ConnectionError("its other end is gone")  # not reported: the tracker is already lost


def test_a_sweep_is_recorded_without_a_run(tmp_path: Path) -> None:
    tracker = Noted()
    Guarded(tracker, "noted").sweep(tmp_path, "2026-11-25/12-00-00")
    assert tracker.told == [("sweep", (tmp_path, "2026-11-25/12-00-00"))]


@pytest.mark.parametrize("depth", ["0", "ppll/4"])
def test_runs_of_a_sweep_know_its_name(tmp_path: Path, depth: str) -> None:
    folder = tmp_path / "2026-11-25" / "12-00-00-77"
    (folder / depth).mkdir(parents=True)
    assert tracked(folder / depth).sweep is None
    (folder / "multirun.yaml").touch()
    assert tracked(folder / depth).sweep == "2026-11-25/12-00-00-77"


def test_records_have_the_documented_keys() -> None:
    assert line_scalars(line(3)) == {"train/loss": 1.5, "train/accuracy": 0.5}
    local = line(3, module=2, split="test", loss=None, samples_per_second=10.0)
    assert line_scalars(local) == {
        "module_2/test/accuracy": 0.5,
        "module_2/test/samples_per_second": 10.0,
    }
    assert stage_scalars(STAGES) == {
        "stage_0/compute_fraction": 0.5,
        "stage_0/starved_fraction": 0.25,
        "stage_0/blocked_fraction": 0.0,
        "stage_0/memory_bytes": 1000.0,
        "stage_1/compute_fraction": 0.5,
        "stage_1/starved_fraction": 0.25,
        "stage_1/blocked_fraction": 0.125,
        "stage_1/memory_bytes": 1000.0,
        "pipeline/bubble_fraction": 0.3125,
    }
    unknown = [STAGES[0], {**STAGES[1], "blocked_fraction": None}]
    assert "pipeline/bubble_fraction" not in stage_scalars(unknown)
    assert stage_scalars([]) == {}


def test_a_summary_is_converted_to_pairs() -> None:
    nested = {"a": {"b": None, "c": [1, {"d": 0}]}, "e": ["x", "y"], "f": []}
    assert tree(nested) == {"a": {"c": {"0": 1, "1": {"d": 0}}}, "e": "x, y", "f": ""}
    assert flat(tree(nested)) == {"a.c.0": 1, "a.c.1.d": 0, "e": "x, y", "f": ""}


@pytest.mark.slow
def test_trackers_libraries_are_not_imported_before_a_run() -> None:
    """The trackers' libraries are not imported.

    Otherwise runs without them would become slower too.
    """
    script = (
        "import sys\n"
        "from ppll_cli.observe.tensorboard_tracker import TensorboardTracker\n"
        "from ppll_cli.observe.wandb_tracker import Upload, WandbTracker\n"
        "TensorboardTracker(), WandbTracker(project='p', tags=[], upload=Upload())\n"
        "print({'wandb', 'tensorboard', 'torch'} & {*sys.modules})\n"
        "import ppll_cli.launch.run\n"
        "print({'wandb', 'tensorboard'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["set()", "set()"]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_library_is_reported_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config, _ = compose_config([f"tracker={name}"])
    with pytest.raises(ConfigError) as caught:
        guarded(name, config["tracker"])
    said = f"tracker={name}: {name} is not installed; {pip_install(name)}"
    assert str(caught.value) == said


def test_a_run_of_an_older_program_can_be_resumed(run: Runner) -> None:
    """The config.json of an older program has the name of a tracker where a class is now."""
    result = run("max_steps=2", *TINY)
    file = result.run_dir / "config.json"
    record = json.loads(file.read_text())
    of_today = {record.pop("sha256"), record.pop("format")}
    assert None not in of_today
    file.write_text(json.dumps({**record, "tracker": {"name": "none"}}))
    before = recorded([f"resume={result.run_dir}"])
    assert before is not None
    assert before.config["tracker"] == {"_target_": "ppll_cli.observe.tracker.NoTracker"}
    assert resumed(result, "max_steps=4").summary["steps"] == 4


def test_a_broken_tracker_does_not_stop_training(
    run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    target = "tracker._target_=tests.observe.test_tracker.Broken"
    result = run("max_steps=2", target, *TINY)
    assert result.summary["status"] == "completed"
    assert caplog.messages == [
        "tracker=none has failed: OSError: nobody there; the run continues without it"
    ]


class Broken(NoTracker):
    """A tracker that cannot even start."""

    def start(self, run: Tracked) -> None:
        raise OSError("nobody there")


def test_the_example_tracker_of_the_docs_records_a_run(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.search(r"```python\n(# my_tracker\.py\n.*?)```", PAGE, re.DOTALL)
    assert code
    (tmp_path / "my_tracker.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    target = "tracker._target_=my_tracker.CsvTracker"
    result = run("local.modules=2", target, "+tracker.name=seen.csv", *TINY)
    rows = (result.run_dir / "seen.csv").read_text().splitlines()
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    numbers = [line_scalars(json.loads(text)) for text in lines]
    assert len(rows) == 1 + sum(len(found) for found in numbers)
    assert rows[0] == "step,seconds,key,value"
    assert any(",test/accuracy," in row for row in rows)
    assert any(",module_0/train/loss," in row for row in rows)


def test_the_docs_name_every_option() -> None:
    config, _ = compose_config(["tracker=wandb"])
    upload = {f"upload.{key}" for key in config["tracker"]["upload"]}
    keys = {*config["tracker"], *upload} - {"_target_", "upload"}
    assert {key for key in keys if f"`tracker.{key}`" not in PAGE} == set()


def test_wandbs_environment_variables_set_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "PROJECT": "p",
        "ENTITY": "e",
        "MODE": "offline",
        "NAME": "n",
        "RUN_GROUP": "g",
        "DIR": "/d",
    }
    for key, value in said.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    config, _ = compose_config(["tracker=wandb", "tracker.name=mine"])
    keys = ("project", "entity", "mode", "name", "group", "dir")
    assert [config["tracker"][key] for key in keys] == ["p", "e", "offline", "mine", "g", "/d"]


def test_a_run_is_named_by_its_name_or_its_settings(tmp_path: Path) -> None:
    folder = tmp_path / "DATE" / "TIME" / "4"
    choices = {"schedule": "ppll", "model": "vit", "data": "digits", "local": "dgl"}
    plain = Tracked(folder, {"gpus": 4, "seed": 2}, choices, "accuracy")
    assert plain.described == "ppll vit digits dgl gpus=4 seed=2 (4)"
    assert (plain.name, plain.tags) == (None, [])
    bp = Tracked(folder, {"gpus": None, "seed": 2}, {**choices, "schedule": "bp"}, "accuracy")
    assert bp.described == "bp vit digits seed=2 (4)"
    named = Tracked(folder, {"name": "mine", "tags": ["a"]}, choices, "accuracy")
    assert (named.name, named.tags) == ("mine", ["a"])
    folder.mkdir(parents=True)
    (folder.parent / "multirun.yaml").touch()
    assert named.name == "mine/4"
