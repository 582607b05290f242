"""Losses that watch later units get the same weights under `ll` and `ppll`, for all partitions.

The runs are inside the test, and the local method belongs to the tests.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ppll_cli.local.method import Criterion, Site, Watch
from ppll_cli.worker.versions import Versions
from tests.conftest import assert_same
from tests.watching import Watcher, Watching
from tests.worker.inside import Outcome, run_inside

DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=29"]
DATA += ["data.test_samples=23", "batch_size=8", "epochs=2", "eval_every=1"]  # 29 = 3 * 8 + 5
VIT = ["model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
STARTS = ["blocks.1", "blocks.2", "blocks.3"]
"""First units of modules 2 to 4.

The first module has the embedding and a block, the last a block and the head.
"""

GROUPINGS = [cuts for count in range(4) for cuts in combinations(STARTS, count)]


def watching(lag: int, unit: int | None = None, starts: Sequence[str] = STARTS) -> list[str]:
    method = ["local._target_=tests.watching.Watching", f"+local.lag={lag}"]
    method += [f"local.cuts=[{','.join(starts)}]"]
    return [*method, *DATA, *VIT, *([] if unit is None else [f"+local.unit={unit}"])]


def grouped(folder: Path, cuts: Sequence[str], *overrides: str, **changes: object) -> Outcome:
    """Run with stages that begin at the first unit and at the given units."""
    stages = [f"gpus={len(cuts) + 1}", "partition=manual", f"partition.cuts=[{','.join(cuts)}]"]
    return run_inside(folder, "schedule=ppll", *stages, *overrides, **changes)


def steps_seen(outcome: Outcome, module: int) -> list[int]:
    """Return, for each batch, how many steps the weights had that a module's loss received."""
    return [n for n in outcome.tensors[f"auxiliary.{module}.steps"].tolist() if n != -99]


Sequential = Callable[[int], Outcome]


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Sequential:
    """Return a function that trains with `ll`, once per lag."""

    @cache
    def made(lag: int) -> Outcome:
        return run_inside(tmp_path_factory.mktemp("ll"), "schedule=ll", *watching(lag))

    return made


@pytest.mark.parametrize(
    ("lag", "groupings"),
    [
        (1, GROUPINGS[3:4]),
        pytest.param(1, GROUPINGS[4:6], marks=pytest.mark.slow),
        (2, [STARTS]),
        pytest.param(5, GROUPINGS, marks=pytest.mark.slow),
    ],
    ids=["1", "1, further", "2", "5"],
)
def test_losses_see_the_same_weights_under_ll_and_ppll(
    sequential: Sequential, tmp_path: Path, lag: int, groupings: Sequence[Sequence[str]]
) -> None:
    """There are eight batches, of which the fourth and the last are short.

    An evaluation comes between them.
    """
    expected = sequential(lag)
    for module in range(3):
        assert steps_seen(expected, module) == [1 - lag + step for step in range(8)]
    for number, cuts in enumerate(groupings):
        found = grouped(tmp_path / str(number), cuts, *watching(lag))
        assert found.job.stages == len(cuts) + 1
        assert_same(found.tensors, expected.tensors)
        assert found.test == expected.test


def test_another_lag_trains_other_weights(sequential: Sequential) -> None:
    name = "model.embed.pos_embedding"
    assert not torch.equal(sequential(1).tensors[name], sequential(2).tensors[name])


@pytest.mark.parametrize(
    "cuts", [["blocks.1", "blocks.3"], pytest.param(STARTS, marks=pytest.mark.slow)]
)
def test_several_modules_can_watch_one_distant_unit(tmp_path: Path, cuts: Sequence[str]) -> None:
    """Three modules watch the last block, from one, two and three stages before it."""
    expected = run_inside(tmp_path / "ll", "schedule=ll", *watching(3, unit=4))
    found = grouped(tmp_path / "ppll", cuts, *watching(3, unit=4))
    assert_same(found.tensors, expected.tensors)
    assert {name for name in found.tensors if name.startswith("watched.")} == {
        f"watched.blocks.3.{age}.{parameter}"
        for age in (1, 2)
        for parameter in (*found.job.watched_specs(0),)
    }
    last = len(cuts)
    to_stages = {target for source, target in found.job.crossing() if source == last}
    assert to_stages == {found.job.layout.chunks[n].stage for n in range(3)} - {last}


@pytest.mark.slow
@pytest.mark.parametrize("lag", [2, 5])
def test_a_resumed_run_restores_older_versions_of_watched_weights(
    sequential: Sequential, tmp_path: Path, lag: int
) -> None:
    """The run resumes at step 3 and at step 6 of 8, each time with other stages.

    At step 3, the versions for a lag of 5 are still the initial weights.
    """
    method = watching(lag)
    run_inside(tmp_path / "first", "schedule=ll", *method, "max_steps=3")
    kept = tmp_path / "first" / "checkpoints" / ".step-3.unfinished"
    grouped(tmp_path / "second", STARTS, *method, "max_steps=6", start=3, checkpoint=kept)
    kept = tmp_path / "second" / "checkpoints" / ".step-6.unfinished"
    for number, cuts in enumerate([["blocks.2"], []]):
        found = grouped(tmp_path / str(number), cuts, *method, start=6, checkpoint=kept)
        assert_same(found.tensors, sequential(lag).tensors)


def test_losses_see_weights_of_a_file_as_initial_weights(
    sequential: Sequential, tmp_path: Path
) -> None:
    """In the first batches, an older version does not exist.

    Then the loss gets the initial weights.
    """
    trained = sequential(5).tensors.items()
    model = {n.removeprefix("model."): t.contiguous() for n, t in trained if n[:6] == "model."}
    save_file(model, tmp_path / "model.safetensors")
    case = [*watching(5), f"weights={tmp_path / 'model.safetensors'}", "max_steps=1"]
    expected = run_inside(tmp_path / "ll", "schedule=ll", *case)
    found = grouped(tmp_path / "ppll", STARTS, *case)
    assert_same(found.tensors, expected.tensors)
    for age in (1, 2, 4):
        for name in found.job.watched_specs(0):
            loaded = model[f"blocks.1.{name}"]
            assert torch.equal(found.tensors[f"watched.blocks.1.{age}.{name}"], loaded)


@pytest.mark.parametrize(
    "steps", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3)), 7]
)
def test_one_version_of_watched_weights_is_sent_per_batch(tmp_path: Path, steps: int) -> None:
    """Weights are sent in the first batches too. At the end, no channel holds a message."""
    found = grouped(tmp_path, ["blocks.2"], *watching(2), f"max_steps={steps}")
    (sent,) = (n for c, n in found.sent.items() if c.kind == "weights")
    size = sum(
        found.tensors[f"model.blocks.2.{name}"].nbytes for name in found.job.watched_specs(1)
    )
    assert sent == steps * size


class Halving(Watcher):
    """Halves the watched weights, which on one stage are those that are trained."""

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        for weight in weights.values():
            weight.mul_(0.5)


class Halves(Watching):
    """Makes losses that halve the watched weights."""

    def criterion(self, site: Site) -> Criterion:
        """Return the criterion."""
        return Halving(site, Watch(site.stop, self.lag))


@pytest.mark.parametrize("cuts", [[], ["blocks.2"]], ids=["one stage", "two stages"])
def test_watched_weights_must_not_be_changed(tmp_path: Path, cuts: Sequence[str]) -> None:
    method = [f"local._target_={__name__}.Halves", *watching(1)[1:], "local.cuts=[blocks.2]"]
    problem = r"see\(\) of module 0's criterion changes 'ln_1.weight' in place"
    with pytest.raises(RuntimeError, match=problem):
        grouped(tmp_path, cuts, *method)


class Emptying(Watcher):
    """Takes all entries out of the mapping, and puts other tensors into it."""

    def see(self, weights: Mapping[str, Tensor], steps: int) -> None:
        super().see(weights, steps)
        assert isinstance(weights, dict)
        for name in [*weights]:
            weights[f"kept.{name}"] = weights.pop(name).double()


class Empties(Watching):
    """Makes losses that change the mapping in which they get the watched weights."""

    def criterion(self, site: Site) -> Criterion:
        """Return the criterion."""
        return Emptying(site, Watch(site.stop, self.lag))


@pytest.mark.parametrize("cuts", [[], ["blocks.2"]], ids=["one stage", "two stages"])
def test_a_loss_may_change_the_mapping_that_has_the_weights(
    sequential: Sequential, tmp_path: Path, cuts: Sequence[str]
) -> None:
    """It was once the mapping of the program itself, so `pop` ended the run by a KeyError."""
    method = [f"local._target_={__name__}.Empties", *watching(2)[1:]]
    found = grouped(tmp_path, cuts, *method)
    assert_same(found.tensors, sequential(2).tensors)


def test_versions_hold_the_weights_of_the_last_steps() -> None:
    network = nn.Linear(1, 1)
    versions = Versions("unit", network, 3)

    def change(value: float) -> None:
        versions.before_step()
        with torch.no_grad():
            network.weight.fill_(value)

    def weights() -> list[float]:
        return [versions.of_age(age)["weight"].item() for age in range(3)]

    with torch.no_grad():
        network.weight.fill_(1.0)
    first = network.weight.item()
    older = versions.of_age(1)["weight"].item()
    assert older == versions.of_age(2)["weight"].item() != first
    for value in (2.0, 3.0):
        change(value)
    assert weights() == [3.0, 2.0, 1.0]
    change(4.0)
    assert weights() == [4.0, 3.0, 2.0]
    assert [name for name, _ in versions.saved()] == [
        *("watched.unit.1.weight", "watched.unit.1.bias"),
        *("watched.unit.2.weight", "watched.unit.2.bias"),
    ]


def test_the_newest_version_takes_no_memory() -> None:
    network = nn.Linear(3, 3)
    versions = Versions("unit", network, 1)
    versions.before_step()
    assert [*versions.saved()] == []
    assert versions.of_age(0)["weight"].data_ptr() == network.weight.data_ptr()
