"""Predictions of many schedules and numbers of devices: rows, the fastest layout, and notes."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.cli import plan as planning
from ppll_cli.cli.plan import Plan
from ppll_cli.cli.planner import Planner
from ppll_cli.errors import ConfigError
from ppll_cli.job.job import Job
from ppll_cli.predict.interconnect import Interconnect, Link
from ppll_cli.predict.speed import Prediction, predict
from ppll_cli.prepare.checks import trials_of
from ppll_cli.prepare.subject import Subject
from tests.cli.test_plan import TINY
from tests.predict.dictated import dictate


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which measured times are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ppll-run" / "profile"


Make = Callable[..., Planner]


@pytest.fixture
def planner(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that makes planners, for which all units take the same time."""
    dictate(monkeypatch)
    yield from _planners()


@pytest.fixture
def measuring(cache: Path) -> Iterator[Make]:
    """Return a function that makes planners, which measure in processes that end with the test."""
    yield from _planners()


def _planners() -> Iterator[Make]:
    with ExitStack() as stack:

        def make(*overrides: str) -> Planner:
            plan = Plan.compose([*TINY, "threads=1", *overrides])
            return stack.enter_context(Planner(plan.settings, list(plan.configs), plan.replicas))

        yield make


@pytest.mark.slow
def test_a_second_plan_measures_nothing(
    cache: Path, measuring: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measuring("schedule=bp,gpipe,ppll").rows(2)
    # There is a file for whole batches and one for micro-batches, each measured alone. If there are
    # cores for a neighbour, there are two more, measured beside it.
    assert len(list(cache.iterdir())) in (2, 4)
    monkeypatch.delattr("ppll_cli.leaves.forkserver.Child")
    assert measuring("schedule=bp,gpipe,ppll").rows(2) == first
    assert first["bp"].speed_up == pytest.approx(1.0)


def test_rows_that_cannot_run_say_why(planner: Make) -> None:
    found = planner("local.modules=3", "schedule.microbatches=9", "schedule=bp,gpipe,ll,ppll")
    rows = {gpus: found.rows(gpus) for gpus in (2, 4, 5)}
    assert [row.obstacle for row in rows[4].values()] == [
        *["a batch of 8 samples cannot be split into 9 micro-batches"] * 2,
        "",
        "more stages than modules",
    ]
    assert rows[5]["ppll"].obstacle == "more stages than units"
    assert rows[2]["ppll"].prediction is not None
    found.check()


def test_a_unit_that_a_run_refuses_is_refused(
    planner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan ended with a traceback when the backward of a unit could not be split."""
    tried = []

    def try_units(job: Job, subject: Subject) -> None:
        tried.append(sorted(trials_of(job)))
        if job.halves:
            raise ConfigError("schedule", "zb_h1", "unit 'odd' fails")

    monkeypatch.setattr("ppll_cli.cli.planner.try_units", try_units)
    found = planner("schedule=bp,gpipe,zb_h1")
    for rows in map(found.rows, (2, 3)):
        assert [row.obstacle for row in rows.values()] == ["", "", "unit 'odd' fails"]
    assert tried == [[], ["overlap"], ["halves", "overlap"]]


@pytest.mark.parametrize("key", ["compile", "recompute"])
def test_splitting_backwards_excludes_some_settings(planner: Make, key: str) -> None:
    row = planner("schedule=zb_h1", f"{key}=true").rows(2)["zb_h1"]
    assert (
        row.obstacle
        == f"this schedule splits each backward into halves, which {key}=true does not allow"
    )


def test_a_schedule_that_cannot_run_is_refused(planner: Make) -> None:
    """Without a check, the simulation of a deadlock ended with a traceback."""
    stuck = [
        "schedule._target_=tests.cli.bad_input.test_schedules.Stuck",
        "schedule.microbatches=8",
    ]
    found = planner("schedule=gpipe", *stuck)
    assert found.rows(2)["gpipe"].obstacle.startswith("the stages wait for each other: stage 0:")
    with pytest.raises(ConfigError, match=r"Stuck: the stages wait for each other"):
        found.check()


def test_a_note_names_the_schedules_with_local_losses(planner: Make) -> None:
    """The note named `ll` and `ppll` even if the plan had neither of them."""
    own = "schedule._target_=ppll_cli.pipeline.schedules.ppll.PPLL"
    (note,) = (n for n in planner("schedule=gpipe", own).notes([2]) if "local losses" in n)
    assert note == "schedules that train modules by local losses: gpipe"


def test_replicas_have_their_own_rows(planner: Make) -> None:
    """Replicas share a batch, so each takes about half as long, and then averages gradients."""
    found = planner("schedule=bp,ppll", "gpus=2,3", "replicas=1,2")
    rows = found.rows(2)
    assert list(rows) == ["bp", "ppll", "bp, 2 replicas", "ppll, 2 replicas"]
    assert all(row.prediction is not None for row in rows.values())
    assert {row.obstacle for row in found.rows(3).values()} == {
        "",
        "the devices cannot be divided evenly among the replicas",
    }
    assert "all-reduce of gradients is predicted to take as long as" in "\n".join(found.notes([2]))


def test_the_fastest_layout_depends_on_the_network(cache: Path) -> None:
    """On a slow network, the fastest layout sends no gradients, because they are larger."""
    plan = Plan.compose([*TINY, "threads=1", "schedule=ppll", "model.dim=128", "batch_size=4"])
    for network in (1e12, 1e3):
        interconnect = Interconnect(between=Link(network))
        with Planner(plan.settings, ["ppll"], None, interconnect, per_machine=1) as found:
            row = found.fastest(4)
            assert row is not None
            assert found.replicas is None
            found.replicas = (1, 2, 4)
            rows = found.rows(4)
        assert row == max(rows.values(), key=lambda row: row.speed_up)
    assert row is not None
    assert (row.stages, row.replicas, row.machines) == (4, 1, 4)
    first, *lines = planning._told(row)
    assert first.startswith("fastest layout: ppll, 4 stages on 4 machines: ")
    pattern = r"  edge {0} > {1} between machines: 0.0\d+ MB a batch, .* link busy \d+% of the time"
    for cut, line in enumerate(lines):
        assert re.fullmatch(pattern.format(cut, cut + 1), line), line
    assert len(lines) == 3
    first, line = planning._told(rows["ppll, 4 replicas"])
    assert first.startswith("fastest layout: ppll, 1 stage x 4 replicas on 4 machines: ")
    assert re.fullmatch(
        r"  gradients: each replica sends 2\.\d+ MB a batch for the average", line
    ), line


@pytest.mark.parametrize("neighbours", [None, 1])
def test_neighbours_are_counted_on_each_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch, neighbours: int | None
) -> None:
    """If `neighbours` is given, it is used instead."""
    asked = list[tuple[int, int | None]]()

    def spy(job: Job, *given: Any) -> Prediction:
        asked.append((len({*job.homes}), given[-1]))
        return predict(job, *given)

    monkeypatch.setattr("ppll_cli.cli.planner.predict", spy)
    dictate(monkeypatch)
    plan = Plan.compose([*TINY, "threads=1", "schedule=ppll"])
    with Planner(plan.settings, ["ppll"], (1,), per_machine=2, neighbours=neighbours) as found:
        found.rows(4)
    assert asked == [(2, neighbours)]


def test_many_edges_are_described_in_one_line(planner: Make) -> None:
    found = planner("schedule=ppll", "model.depth=6", "replicas=1")
    row = found.fastest(8)
    assert row is not None
    assert row.prediction is not None
    told = list(planning._told(row))
    assert re.match(r"  7 edges within a machine: <= 0\.\d+ MB a batch, <= ", told[1])
    assert len(told) == 2


def test_a_plan_in_which_nothing_can_run_is_refused(planner: Make) -> None:
    found = planner("schedule=ppll,pp")
    found.rows(5)
    assert found.fastest(1024) is None
    with pytest.raises(
        ConfigError, match="gpus=5: makes 5 stages, but the model has only 4 units; "
    ):
        found.check()


def test_notes_explain_the_tables(planner: Make) -> None:
    found = planner("schedule=bp,gpipe")
    found.rows(1)
    notes = "\n".join(found.notes([1, 4096]))
    assert "gpus=4096: simulated as equal devices" in notes
    assert "some schedules split each batch (gpipe into 4 micro-batches)" in notes
    assert "local losses" not in notes


def test_notes_say_where_recovery_is_not_predicted(planner: Make) -> None:
    """A row with replicas cannot have it. Schedules that never can have it get no note."""
    found = planner("schedule=bp,ppll", "replicas=1,2", "recover=stage", "model.depth=6")
    for gpus in (1, 2, 4):
        found.rows(gpus)
    (note,) = [note for note in found.notes([1, 2, 4]) if "recover" in note]
    assert note == (
        "ppll, 2 replicas for gpus=4 is predicted without recover=stage: "
        "the replicas of a stage average their gradients"
    )


def test_notes_give_the_auxiliary_share_up_to_which_ppll_is_faster(planner: Make) -> None:
    """The bound is (K - 1) / M against 1F1B, and a third of that against ZB-H1."""
    found = planner("schedule=1f1b,zb_h1,ppll", "schedule.microbatches=6")
    against_1f1b, against_zb = found.notes([1, 2, 8])[-2:]
    assert "faster than 1f1b" in against_1f1b
    assert against_1f1b.endswith(": 0.17 for gpus=2, 1.17 for gpus=8")
    assert "faster than zb_h1" in against_zb
    assert against_zb.endswith(": 0.06 for gpus=2, 0.39 for gpus=8")
    assert not [line for line in planner("schedule=1f1b").notes([2]) if "faster" in line]
