"""What is measured before training, and that it leaves no trace in it."""

import json
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ppll_cli import settings
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.vit import ViT
from ppll_cli.runtime import profile as profiling
from ppll_cli.runtime.prepare import Prepared, prepare
from ppll_cli.runtime.profile import Profile, source_digest
from tests.conftest import Runner, assert_same, compose_config

DATA = ["data=synthetic", "data.size=8", "data.train_samples=53", "data.test_samples=7"]
SMALL = [*DATA, "batch_size=8", "model.dim=16", "model.depth=4", "model.heads=2", "device=cpu"]
SMALL += ["threads=1"]
UNITS = ["embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where times are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppll-run" / "profile"


def prepared(*overrides: str) -> Prepared:
    config, _ = compose_config([*SMALL, "partition=profile", *overrides])
    return prepare(settings.parse(config), "unused")


def kept(cache: Path) -> dict[str, float]:
    (file,) = cache.glob("*.json")
    times: dict[str, float] = json.loads(file.read_text())
    return times


@pytest.fixture
def dictated(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Times by name that take the place of measured ones; 1 ms where there is none."""
    times: dict[str, float] = {}

    def timed(self: Profile, name: str, action: Callable[[], object]) -> float:
        return times.get(name, 1e-3)

    monkeypatch.setattr(Profile, "_timed", timed)
    return times


def cut_after(run: Prepared) -> list[str]:
    return [UNITS[stage.start] for stage in run.job.layout.stages[1:]]


def test_what_is_measured(cache: Path) -> None:
    """Each unit, the auxiliary networks at the ends that were considered, and the copies."""
    prepared("gpus=2", "local=dgl")
    times = kept(cache)
    assert all(seconds > 0 for seconds in times.values())
    assert {f"unit {name}" for name in UNITS} <= times.keys()
    assert {f"auxiliary 0 of 2 up to {stop}" for stop in range(1, 6)} <= times.keys()
    assert "copy blocks.2" in times


def test_nothing_of_the_run_is_touched() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    prepared("gpus=2", "local=dgl")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_what_is_trained_is_what_its_cuts_train(run: Runner) -> None:
    """Measuring builds and trains copies; the run itself begins as if there had been none."""
    case = [*SMALL, "gpus=2", "max_steps=6", "local=dgl"]
    measured = run(*case, "partition=profile")
    (_, second) = measured.summary["per_module"]
    pinned = run(*case, f"local.cuts=[{second['units'][0]}]")
    assert_same(measured.tensors(), pinned.tensors())


def test_times_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared("gpus=2")

    def never(self: Profile, *_: object) -> Any:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(Profile, "_training", never)
        again = prepared("gpus=2")
    assert again.job.layout == first.job.layout
    assert again.notes == first.notes
    for other in ("model.dim=32", "batch_size=7", "threads=2", "precision=bf16", "optim=sgd"):
        prepared("gpus=2", other)
    assert len(list(cache.glob("*.json"))) == 6


def test_what_is_measured_depends_on_the_code() -> None:
    vit, resnet = ViT(dim=8, depth=1, heads=1, patch=4), CifarResNet(depth=8)
    assert source_digest(vit, resnet) != source_digest(resnet)
    assert source_digest(vit) == source_digest(ViT(dim=16, depth=1, heads=1, patch=4))


def test_the_dearest_stage_is_the_cheapest_there_is(dictated: dict[str, float]) -> None:
    for name, cost in zip(UNITS, [9, 1, 4, 2, 7, 1], strict=True):
        dictated[f"unit {name}"] = 1e-3 * cost
    for stop in range(7):
        for module in (0, 1):
            dictated[f"auxiliary {module} of 3 up to {stop}"] = 1e-3 * (stop % 3 + module)
    dictated["auxiliary 2 of 3 up to 6"] = 0.0
    dictated |= {f"copy {name}": 1e-4 * number for number, name in enumerate(UNITS)}

    def dearest(starts: tuple[int, ...]) -> float:
        costs = []
        for stage, (start, stop) in enumerate(pairwise([0, *starts, 6])):
            units = sum(dictated[f"unit {name}"] for name in UNITS[start:stop])
            sent = dictated[f"copy {UNITS[stop]}"] if stop < 6 else 0.0
            costs.append(units + dictated[f"auxiliary {stage} of 3 up to {stop}"] + sent)
        return max(costs)

    found = cut_after(prepared("gpus=3"))
    least = min(dearest(starts) for starts in combinations(range(1, 6), 2))
    first, second = (UNITS.index(name) for name in found)
    assert dearest((first, second)) == pytest.approx(least)


def test_copies_count_for_fixed_units(dictated: dict[str, float]) -> None:
    assert cut_after(prepared("schedule=gpipe", "gpus=2")) == ["blocks.2"]
    dictated["copy blocks.2"] = 1.0
    assert cut_after(prepared("schedule=gpipe", "gpus=2")) != ["blocks.2"]


def test_the_user_is_told(dictated: dict[str, float]) -> None:
    dictated["unit blocks.0"] = 2e-3
    notes = prepared("gpus=2").notes
    assert "  blocks.0          2.000  0" in notes
    assert "  stage 0: 5.000 (auxiliary 1.000, copy 1.000)" in notes
    assert "  stage 1: 5.000 (auxiliary 1.000, copy 0.000)" in notes
    assert "  predicted: 2.00 x the speed of ll, bubble 0.0000" in notes
    assert "  the training depends on these cuts; local.cuts=[blocks.1] pins them" in notes
    fixed = prepared("gpus=2", "local.modules=6").notes
    assert not any("pins them" in line for line in fixed)
    assert any("pins them" in line for line in prepared("gpus=2", "schedule=ll").notes)
    assert not any("predicted" in line for line in prepared("gpus=2", "schedule=gpipe").notes)


def test_the_least_time_after_a_warm_up_counts(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first run that takes long, and another one that something came between, do not count."""
    clock = iter(range(10**9))
    spans = [0.5, *[4.0] * (profiling.WARMUP - 1), 9.0, 2.0, *[3.0] * profiling.REPETITIONS]
    ticks = {"now": 0.0}

    def now(_: Profile) -> float:
        number = next(clock) % (2 * (profiling.WARMUP + profiling.REPETITIONS))
        ticks["now"] += spans[number // 2] if number % 2 else 1.0
        return ticks["now"]

    monkeypatch.setattr(Profile, "_now", now)
    prepared("gpus=2")
    assert set(kept(cache).values()) == {2.0}
