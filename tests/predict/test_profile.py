"""Measurements before training, which leave no trace in the training."""

import json
import os
import pickle
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import combinations, pairwise
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppll_cli.config import settings
from ppll_cli.errors import WorkerFailedError
from ppll_cli.job.devices import device_of
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.vit import Block, ViT
from ppll_cli.predict import timing
from ppll_cli.predict.chain import Work
from ppll_cli.predict.fingerprint import source_digest, structure
from ppll_cli.predict.meter import Meter
from ppll_cli.predict.neighbours import neighbours
from ppll_cli.predict.profile import Measured, Profile
from ppll_cli.prepare.preparation import Prepared, prepare, profile_of
from ppll_cli.prepare.subject import examine
from tests.conftest import Runner, assert_same, compose_config, own_model

DATA = ["data=synthetic", "data.size=8", "data.train_samples=53", "data.test_samples=7"]
SMALL = [*DATA, "batch_size=8", "model.dim=16", "model.depth=4", "model.heads=2", "device=cpu"]
SMALL += ["threads=1"]
UNITS = ["embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]
LIMIT_S = 30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which times are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppll-run" / "profile"


def prepared(*overrides: str) -> Prepared:
    config, _ = compose_config([*SMALL, "partition=profile", *overrides])
    return prepare(settings.parse(config), "unused")


def made(*overrides: str) -> Profile:
    config, _ = compose_config([*SMALL, *overrides])
    parsed = settings.parse(config)
    return profile_of(parsed, examine(parsed), device_of(parsed))


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


class Dictated:
    """Times in milliseconds that replace measured ones; 1 ms if a time is not given."""

    def __init__(self) -> None:
        self.units: dict[str, float] = {}
        self.auxiliary: dict[tuple[int, int], float] = {}
        self.copies: dict[int, float] = {}
        self.asked: set[int] = set()


@pytest.fixture
def dictated(monkeypatch: pytest.MonkeyPatch) -> Dictated:
    """Replace measured times by given ones.

    The forward pass takes a third of a unit's time, and the optimizer's step takes none.
    """
    told = Dictated()

    def unit(self: Profile, index: int, first: bool = False) -> Measured:
        told.asked.add(self.neighbours)
        total_s = 1e-3 * told.units.get(self.ends.site.units[index].name, 1.0)
        return Measured(total_s / 3, total_s * 2 / 3, 100, 10)

    def auxiliary(self: Profile, modules: Sequence[range], module: int) -> Measured:
        total_s = 1e-3 * told.auxiliary.get((module, modules[module].stop), 1.0)
        return Measured(total_s / 2, total_s / 2, 7, 0)

    monkeypatch.setattr(Profile, "unit", unit)
    monkeypatch.setattr(Profile, "auxiliary", auxiliary)
    monkeypatch.setattr(Profile, "copy", lambda self, size: 1e-3 * told.copies.get(size, 1.0))
    monkeypatch.setattr(Profile, "step_s", 0.0)
    monkeypatch.setattr(Profile, "parameter_bytes", 16.0)
    monkeypatch.setattr(Profile, "_known", {})
    return told


def cut_after(run: Prepared) -> list[str]:
    return [UNITS[cut] for cut in run.job.layout.cuts()]


def test_equal_units_are_measured_once(cache: Path) -> None:
    """The six units are of three kinds.

    Two of these are also measured as the first unit of a module. There are two kinds of losses.
    """
    found = prepared("gpus=2", "local.modules=5")
    records = kept(cache)
    kinds = sorted(name.split()[0] for name in records)
    assert kinds == ["auxiliary"] * 2 + ["copy"] * 2 + ["parameter"] + ["unit"] * 5
    params = {record["params"] for name, record in records.items() if name.startswith("unit")}
    assert params == {cost.params for cost in found.unit_costs}
    for name, record in records.items():
        assert all(record[key] > 0 for key in record if key.endswith("_s")), name
    assert records["parameter"]["bytes"] == pytest.approx(16, abs=0.2)  # AdamW's state and counters


def test_networks_of_equal_structure_have_equal_costs() -> None:
    def layers(width: int = 8, dropout: float = 0.1) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Dropout(dropout))

    assert structure(layers()) == structure(layers())
    with torch.device("meta"):
        assert structure(layers()) == structure(layers().eval())
    others = [layers(9), layers(dropout=0.2), nn.Sequential(*list(layers())[:2]), layers().double()]
    assert len({structure(network) for network in (layers(), *others)}) == 5


def test_profiling_changes_neither_random_numbers_nor_threads() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    prepared("gpus=2", "local=dgl")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


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


@pytest.fixture
def no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a machine with one core."""
    monkeypatch.setattr("ppll_cli.predict.speed.usable_cores", lambda: 1)


@pytest.mark.slow
@pytest.mark.usefixtures("no_neighbours")
def test_measured_times_are_kept_and_used_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared("gpus=2")
    with monkeypatch.context() as patched:

        def never(*_: object) -> Any:
            raise AssertionError("measured again")

        patched.setattr(Meter, "_start", never)
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


def test_times_beside_neighbours_are_kept_apart(
    cache: Path, profile: Callable[..., Profile]
) -> None:
    alone = profile()
    beside = alone.at(alone.samples, neighbours=1)
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


def test_kept_times_depend_on_the_code_of_the_model() -> None:
    vit, resnet = ViT(dim=8, depth=1, heads=1, patch=4), CifarResNet(depth=8)
    assert source_digest(vit, resnet) != source_digest(resnet)
    assert source_digest(vit) == source_digest(ViT(dim=16, depth=1, heads=1, patch=4))


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
    assert "  the training depends on these cuts; 'local.cuts=[blocks.1]' pins them" in notes


def test_losses_are_measured_for_the_share_of_a_replica(dictated: Dictated) -> None:
    """Each replica computes losses only for its share of a batch."""
    notes = prepared("gpus=4", "replicas=2").notes
    stages = [line for line in notes if line.startswith("  stage ")]
    assert [line.rpartition(" ")[2] for line in stages] == ["1.000", "1.000"]
    fixed = prepared("gpus=2", "local.modules=6").notes
    assert not any("pins them" in line for line in fixed)
    assert any("pins them" in line for line in prepared("gpus=2", "schedule=ll").notes)
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


def test_times_are_medians_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow warm-up does not count. A single disturbed run hardly changes the median."""
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    rows = iter([[9.0, 90.0]] * timing.WARMUP + [[3.0, 20.0], [1.0, 80.0], [2.0, 10.0]])
    assert timing.repeat(lambda: next(rows), torch.device("cpu")) == [2.0, 20.0]


def test_each_tensor_that_autograd_saves_is_counted_once() -> None:
    """Linear saves its input and its weight, which are not counted. Each ReLU saves its output."""
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.ReLU())
    x = torch.rand(2, 6)
    with timing.saved_storages([x, *timing.held(network)]) as saved:
        network(x)
    assert sorted(saved.values()) == [2 * 4 * 4] * 2


def work(*overrides: str) -> Work:
    """Return the description of a chain of all units of a model."""
    found = made(*overrides)
    return found._work([(index, False) for index in range(len(found.ends.site.units))])


def test_a_chain_runs_a_training_step() -> None:
    """Random numbers replace a tensor only if the chain lacks the unit that makes it."""
    whole = work()
    chain = whole.chain()
    before = [parameter.clone() for parameter in chain.parameters]
    seconds = chain.step()
    assert len(seconds) == 2 * len(UNITS) + 1
    assert not chain._made.keys() - {("image", whole.parts[0].inputs[0])}
    assert any(not torch.equal(a, b) for a, b in zip(before, chain.parameters, strict=True))
    assert all(parameter.grad is None for parameter in chain.parameters)
    short = replace(whole, parts=whole.parts[2:4]).chain()
    assert len(short.step()) == 5
    assert [name for name, _ in short._made] == ["x"]


def test_the_memory_that_a_transformer_block_keeps_is_measured() -> None:
    """By hand: a transformer block saves float32 tensors of the size of tokens [8, 5, 16]."""
    tokens = 8 * 5 * 16 * 4
    norms, projected, attention, first_sum, hidden, gelu, output = 2, 3, 1, 1, 4, 4, 1
    all_of_them = norms + projected + attention + first_sum + hidden + gelu + output
    (_, block, *_) = (saved.kept for saved in work().chain().saved_bytes())
    # LayerNorm's means and deviations, and attention's sums of exponentials, are small.
    assert all_of_them * tokens <= block <= 1.05 * all_of_them * tokens


def test_recomputing_keeps_less_memory_and_runs_forward_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block keeps only its output, tokens [8, 5, 16]. Its backward computes the rest again."""
    whole, again = (work(f"recompute={on}").chain() for on in ("false", "true"))
    for before, after in zip(whole.saved_bytes(), again.saved_bytes(), strict=True):
        assert before.recomputed == 0
        assert sum(after) == before.kept
    assert again.saved_bytes()[1].kept == 8 * 5 * 16 * 4
    passes = Counter[bool]()
    forward = Block.forward

    def counted(self: Block, x: torch.Tensor) -> torch.Tensor:
        passes[self in again.networks] += 1
        return forward(self, x)

    monkeypatch.setattr(Block, "forward", counted)
    for chain in (whole, again):
        assert len(chain.step()) == 2 * len(UNITS) + 1
    assert passes == {False: 4, True: 8}


def test_neighbours_end_after_the_measurement() -> None:
    with neighbours(work(), 2):
        assert len(active_children()) == 2
    assert not active_children()
    with pytest.raises(ZeroDivisionError), neighbours(work(), 1):
        raise ZeroDivisionError
    assert not active_children()


def test_a_failing_neighbour_is_reported() -> None:
    """A neighbour may never start, or fail while the body runs."""
    removed = [key for key in SMALL if not key.startswith("model")]
    whole = work()
    other = replace(whole.setup, model={"_target_": "tests.own_models.Nothing"})
    broken = replace(whole, setup=other)
    with pytest.raises(WorkerFailedError, match="cannot be imported"), neighbours(broken, 1):
        pytest.fail("there is none")
    config, _ = compose_config([*removed, *own_model("Faulty", unit="second", act="kill")])
    parsed = settings.parse(config)
    found = profile_of(parsed, examine(parsed), "cpu")

    def wait_for_its_end() -> None:
        with neighbours(found._work([(index, False) for index in range(3)]), 1):
            (child,) = active_children()
            child.join(LIMIT_S)

    with pytest.raises(WorkerFailedError, match="the process is gone"):
        wait_for_its_end()
    assert not active_children()


PARENT = """
import os, sys, pickle
from multiprocessing import active_children
from ppll_cli.predict.meter import Meter
from ppll_cli.predict.neighbours import neighbours

if __name__ == "__main__":
    with neighbours(pickle.load(sys.stdin.buffer), 2):
        print(*(child.pid for child in active_children()), flush=True)
        sys.stdin.buffer.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no process descriptors here")
def test_neighbours_end_if_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pickle.dump(work(), parent.stdin)
        parent.stdin.flush()
        descriptors = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(descriptors) == 2
        parent.send_signal(signal.SIGKILL)
        for descriptor in descriptors:
            ended, _, _ = select.select([descriptor], [], [], LIMIT_S)
            os.close(descriptor)
            assert ended
