"""Measurements before training, which leave no trace in the training."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.predict.meter import Meter
from ppll_cli.predict.profile import Measured, Profile
from ppll_cli.prepare.preparation import Prepared
from ppll_cli.tasks.classification import classes_of
from ppll_cli.tasks.task import Task
from tests import conftest
from tests.conftest import Runner, assert_same, own_model
from tests.predict.dictated import Dictated, dictate
from tests.predict.given import DATA, SMALL
from tests.predict.small import UNITS, made


def prepared(*overrides: str) -> Prepared:
    return conftest.prepared(*SMALL, "partition=profile", *overrides)


@pytest.fixture
def profile() -> Iterator[Callable[..., Profile]]:
    """Return a function that makes profiles. Their processes end with the test."""
    with ExitStack() as stack:
        yield lambda *overrides: stack.enter_context(closing(made(*overrides)))


def kept(cache: Path) -> dict[str, dict[str, float]]:
    """Return all records in the cache, for all conditions."""
    records: dict[str, dict[str, float]] = {}
    for file in cache.glob("*.json"):
        records |= json.loads(file.read_text())
    return records


@pytest.fixture
def dictated(monkeypatch: pytest.MonkeyPatch) -> Dictated:
    return dictate(monkeypatch)


def cut_after(run: Prepared) -> list[str]:
    return [UNITS[cut] for cut in run.job.layout.cuts()]


def test_equal_units_are_measured_once(cache: Path) -> None:
    """The six units are of three kinds.

    Two of these are also measured as the first unit of a module. There are two kinds of losses.
    Measuring changes neither random numbers nor threads.
    """
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    found = prepared("gpus=2", "local.modules=5")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    records = kept(cache)
    kinds = sorted(name.split()[0] for name in records)
    assert kinds == ["auxiliary"] * 2 + ["copy"] * 2 + ["parameter"] + ["unit"] * 5
    params = {record["params"] for name, record in records.items() if name.startswith("unit")}
    assert params == {cost.params for cost in found.subject.costs}
    for name, record in records.items():
        assert all(record[key] > 0 for key in record if key.endswith("_s")), name
    assert records["parameter"]["bytes"] == pytest.approx(16, abs=0.2)  # AdamW's state and counters


class Partly:
    """A model whose first unit is not trained."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        pixels = image.channels * image.height * image.width
        head = partial(nn.Linear, 5, classes_of(task, "partly"))
        return [Unit("frozen", partial(_frozen, pixels), ("image",)), Unit("head", head)]


def _frozen(pixels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 5).requires_grad_(False))


@pytest.mark.slow
def test_parameters_that_are_not_trained_are_counted_apart(cache: Path) -> None:
    """They were counted as trained, with gradients, states of the optimizer and averages."""
    own = own_model("predict.test_profile.Partly")
    case = [*DATA, "threads=1", "batch_size=8", "schedule=gpipe", "gpus=2", *own]
    conftest.prepared(*case, "partition=profile")
    records = kept(cache)
    units = [record for name, record in records.items() if name.startswith("unit")]
    counts = {(record["params"], record["frozen_bytes"]) for record in units}
    assert counts == {(0, 4 * (3 * 8 * 8 + 1) * 5), ((5 + 1) * 10, 0)}
    assert records["parameter"]["bytes"] == pytest.approx(16, abs=0.5)  # as for other models


@pytest.mark.slow
def test_a_profiled_run_trains_the_same_as_a_run_with_its_cuts(run: Runner) -> None:
    """Measuring builds and trains copies.

    The run's own weights and random numbers do not change.
    """
    case = [*SMALL, "gpus=2", "max_steps=6", "local=dgl"]
    measured = run(*case, "partition=profile")
    (_, second) = measured.summary["per_module"]
    pinned = run(*case, f"local.cuts=[{second['units'][0]}]")
    assert_same(measured.tensors(), pinned.tensors())


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_measured_times_are_kept_and_used_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared("gpus=2")
    with monkeypatch.context() as patched:

        def never(*_: object) -> Any:
            raise AssertionError("measured again")

        patched.setattr("ppll_cli.leaves.forkserver.Child", never)
        again = prepared("gpus=2")
    assert again.job.layout == first.job.layout
    assert again.notes == first.notes
    for other in (
        "model.dim=32",
        "batch_size=7",
        "threads=2",
        "precision=bf16",
        "optim=sgd",
        "deterministic=true",
        "recompute=true",
    ):
        prepared("gpus=2", other)
    assert len(list(cache.glob("*"))) == 8


def test_times_that_other_programs_disturbed_are_not_kept(
    cache: Path,
    profile: Callable[..., Profile],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next plan trusted times of a busy machine, which were a thousand times too long.

    With more threads than cores, the threads of a run wait for one another in the same way.
    """

    def ask(self: Meter, *_: object) -> float:
        self.disturbed = True
        return 0.5

    monkeypatch.setattr(Meter, "ask", ask)
    for cores, files in ((2, 0), (1, 1)):
        monkeypatch.setattr("ppll_cli.predict.profile.usable_cores", lambda cores=cores: cores)
        measured = profile("threads=2")
        assert measured.copy(100) == 0.5
        measured.close()
        assert len(kept(cache)) == files
        assert caplog.text.count("the next command measures again") == 1


def test_times_beside_neighbours_are_kept_apart(
    cache: Path, profile: Callable[..., Profile]
) -> None:
    alone = profile()
    beside = alone.at(alone.setup.samples, neighbours=1)
    assert alone.at(8).unit(1) != beside.unit(1)
    alone.save()
    assert len(list(cache.glob("*.json"))) == 2
    assert profile().at(8, neighbours=1).unit(1) == beside.unit(1)


def test_losses_get_the_slowdown_that_units_have_beside_neighbours(
    profile: Callable[..., Profile],
) -> None:
    """The slowdown of units is used for losses too.

    Otherwise each loss would start neighbours again.
    """
    alone = profile().at(8)
    beside = alone.at(8, neighbours=1)
    beside.slowdown = 1.5  # so that no neighbour is started
    modules = [range(2), range(2, 6)]
    loss = alone.auxiliary(modules, 0)
    assert beside.auxiliary(modules, 0) == Measured(
        1.5 * loss.forward_s, 1.5 * loss.backward_s, loss.saved_bytes, loss.params
    )


def test_partition_profile_minimizes_the_cost_of_the_dearest_stage(dictated: Dictated) -> None:
    tokens = 8 * 5 * 16 * 4  # the tensor that crosses every cut after the first unit
    dictated.units = dict(zip(UNITS, [9, 1, 4, 2, 7, 1], strict=True))
    dictated.auxiliary = {(m, stop): stop % 3 + m for stop in range(7) for m in (0, 1)}
    dictated.auxiliary[2, 6] = 0.0
    dictated.copies = {tokens: 0.7}

    def dearest(starts: tuple[int, ...]) -> float:
        costs = []
        for stage, (start, stop) in enumerate(pairwise([0, *starts, 6])):
            units = sum(dictated.units[name] for name in UNITS[start:stop])
            costs.append(units + dictated.auxiliary[stage, stop] + 0.7 * (stop < 6))
        return max(costs)

    found = cut_after(prepared("gpus=3"))
    least = min(dearest(starts) for starts in combinations(range(1, 6), 2))
    first, second = (UNITS.index(name) for name in found)
    assert dearest((first, second)) == pytest.approx(least)


def test_copies_at_cuts_count_in_the_partition(dictated: Dictated) -> None:
    """Uneven stages are better than a cut after the widest tensor."""
    case = ["schedule=gpipe", "schedule.microbatches=1", "gpus=2"]
    assert cut_after(prepared(*case)) == ["blocks.2"]
    dictated.units = dict.fromkeys(UNITS[1:], 0.1)
    dictated.copies = {8 * 5 * 16 * 4: 100.0, 8 * 3 * 8 * 8 * 4: 0.0}
    assert len(cut_after(prepared(*case))) == 1


def test_notes_have_a_table_of_times_and_a_prediction(
    dictated: Dictated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every schedule with several stages gets a table, and a prediction."""
    monkeypatch.setattr("ppll_cli.predict.speed.usable_cores", lambda: 2)
    dictated.units = {"blocks.0": 2.0}
    notes = prepared("gpus=2").notes
    title = "partition=profile, milliseconds for 8 samples, measured while 1 other process(es)"
    assert any(line.startswith(title) for line in notes)
    assert "  blocks.0          0.667     1.333   0.000  0" in notes
    assert "  stage 0: 5.000 per batch, of which losses take 1.000" in notes
    assert "  stage 1: 5.000 per batch, of which losses take 1.000" in notes
    # bp takes 7 ms for the units and 1 ms for the loss. The slower stage takes 5 ms.
    line = "  predicted: 1600 samples/s, 1.60 x the speed of bp on one device, bubble 0.0000"
    assert line in notes
    again = "to use them again, give 'local.cuts=[blocks.1]'"
    assert f"  the training depends on these cuts; {again}" in notes


def test_losses_are_measured_for_the_share_of_a_replica(dictated: Dictated) -> None:
    """Each replica computes losses only for its share of a batch."""
    notes = prepared("gpus=4", "replicas=2").notes
    stages = [line for line in notes if line.startswith("  stage ")]
    assert [line.rpartition(" ")[2] for line in stages] == ["1.000", "1.000"]
    fixed = prepared("gpus=2", "local.modules=6").notes
    assert not any("to use them again" in line for line in fixed)
    assert any("to use them again" in line for line in prepared("gpus=2", "schedule=ll").notes)
    for schedule in ("pp", "gpipe", "1f1b"):
        others = prepared("gpus=2", f"schedule={schedule}").notes
        assert sum("predicted: " in line for line in others) == 1
    assert dictated.asked == {0, 1}


@pytest.mark.parametrize(
    "case",
    [
        ["schedule=bp", "gpus=2"],
        ["schedule=ll", "gpus=2", "local.modules=3"],
        ["schedule=ppll", "gpus=1"],
        ["schedule=gpipe", "gpus=1"],
    ],
)
def test_nothing_is_measured_for_a_single_stage(cache: Path, case: list[str]) -> None:
    """A profile was once made for schedules of one stage, although it was not used."""
    assert not any("milliseconds" in line for line in prepared(*case).notes)
    assert not cache.exists()
