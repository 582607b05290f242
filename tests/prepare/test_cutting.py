"""Partitions by FLOPs, compared with every possible partition."""

import sys
from collections.abc import Sequence
from itertools import combinations, cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ppll_cli.config.sections import Partition
from ppll_cli.errors import ConfigError
from ppll_cli.models.trace import Cost
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.prepare.cutting import BACKWARD, STEP_FLOPS, Weights, grouped, placed, weights
from ppll_cli.prepare.preparation import Prepared
from tests import conftest

DATA = ["data=synthetic", "data.size=16", "data.train_samples=53", "data.test_samples=7"]
RESNET = [*DATA, "model=resnet32", "model.depth=14", "batch_size=8", "device=cpu"]
BATCH = 8
SHORT = "model.depth=8"  # five units, which can be cut into three stages in six ways


def prepared(*overrides: str) -> Prepared:
    return conftest.prepared(*RESNET, *overrides)


def flops(cost: Cost) -> float:
    return BACKWARD * cost.flops + STEP_FLOPS * cost.params / BATCH


def stage_costs(run: Prepared) -> list[float]:
    """Return the cost of each stage.

    Auxiliary networks count on the stage where their module ends.
    """
    layout = run.job.layout
    return [
        sum(flops(run.subject.costs[index]) for index in stage)
        + sum(
            flops(cost)
            for module, cost in zip(layout.modules, run.auxiliary_costs, strict=True)
            if module.stop - 1 in stage
        )
        for stage in map(layout.units, range(layout.stages))
    ]


def every_cut(names: Sequence[str], stages: int) -> list[str]:
    cuts = combinations(names[1:], stages - 1)
    return [f"partition.cuts=[{','.join(cut)}]" for cut in cuts]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(["local=greedy", "gpus=2"], marks=pytest.mark.slow),
        ["local=dgl", "local.hidden=600", "gpus=2", SHORT],  # heads cost more than units
        pytest.param(["schedule=gpipe", "gpus=3", SHORT], marks=pytest.mark.slow),
        pytest.param(["local=infopro", "local.modules=5", "gpus=2"], marks=pytest.mark.slow),
    ],
)
def test_flops_partition_minimizes_the_cost_of_the_dearest_stage(case: list[str]) -> None:
    found = prepared(*case, "partition=flops")
    names = found.job.names
    stages = found.job.stages
    starts = [m.start for m in found.job.layout.modules]
    if "local.modules=5" in case:
        names = tuple(names[start] for start in starts)
    others = [
        max(stage_costs(prepared(*case, "partition=manual", cuts)))
        for cuts in every_cut(names, stages)
    ]
    assert len(others) > 3
    assert max(stage_costs(found)) == min(others)
    assert max(stage_costs(prepared(*case, "partition=uniform"))) >= min(others)


def test_ll_has_the_same_modules_as_ppll() -> None:
    case = ["local=dgl", "gpus=3", "partition=flops"]
    pipelined, sequential = prepared(*case), prepared(*case, "schedule=ll")
    assert sequential.job.layout.modules == pipelined.job.layout.modules
    assert sequential.job.layout.stages == 1


def test_partitions_do_not_change_modules_of_a_given_number() -> None:
    case = ["local.modules=5", "gpus=2"]
    modules = {
        prepared(*case, f"partition={name}", "local=dgl").job.layout.modules
        for name in ("uniform", "params", "flops")
    }
    assert len(modules) == 1


def test_each_partition_balances_its_own_weights() -> None:
    units = [Cost(100, 7, ()), Cost(0, 5, ())]

    def auxiliary(modules: Sequence[range], module: int) -> Cost:
        return Cost(8 * module, len(modules), ())

    subject: Any = SimpleNamespace(costs=units, ends=SimpleNamespace(cost=auxiliary))
    settings: Any = SimpleNamespace(batch_size=8, replicas=2)
    found = []
    for name in ("uniform", "params", "flops"):
        settings.partition = Partition(name=name, cuts=None)
        found.append(weights(settings, subject, None))
    uniform, params, by_flops = found
    assert (uniform.units, params.units) == ([1, 1], [100, 0])
    assert uniform.auxiliary is params.auxiliary is None
    assert by_flops.units == [3 * 7 + 10 * 100 / 4, 3 * 5]
    assert by_flops.auxiliary is not None
    assert by_flops.auxiliary([range(1), range(1, 2)], 1) == 3 * 2 + 10 * 8 / 4


def test_grouping_never_splits_an_atom() -> None:
    atoms = [range(3), range(3, 4), range(4, 6), range(6, 10)]
    costs = Weights([2, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    assert grouped(costs, atoms, None, 2) == [range(4), range(4, 10)]
    assert grouped(costs, atoms, None, 4) == atoms


def test_grouping_counts_the_cost_of_sending() -> None:
    """If a stage began with the third atom, the stage before it would cost 9 more."""
    atoms = [range(n, n + 1) for n in range(4)]
    assert grouped(Weights([1] * 4), atoms, None, 2) == [range(2), range(2, 4)]
    sending = Weights([1] * 4, copy=lambda stop: 9 * (stop == 2))
    assert grouped(sending, atoms, None, 2) == [range(3), range(3, 4)]


def test_every_stage_gets_units() -> None:
    for gpus in (3, 8):
        layout = prepared("local=fba", "partition=flops", f"gpus={gpus}").job.layout
        stages = [layout.units(stage) for stage in range(layout.stages)]
        assert len(stages) == gpus
        assert [index for stage in stages for index in stage] == list(range(8))
        assert all(stages)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (
            lambda stages: [1, 0],
            r"is \[1, 0\]; it must give each of the stages 0 to 1 a chunk, and stage 0",
        ),
        (lambda stages: [0, 0], r"is \[0, 0\]; it must give each of"),
        (lambda stages: [0, 1, 2], r"is \[0, 1, 2\]; it must give each of"),
        (lambda stages: [], r"is \[\]; it must give each of"),
        (lambda stages: [0][stages], r"its layout\(2\)"),
        (lambda stages: [0, 1.0], r"is \[0, 1.0\]; it must give each of"),
        (lambda stages: [0, True], r"is \[0, True\]; it must give each of"),
        (lambda stages: cycle([0, 1]), r"has more than 10000 chunks; it may never end"),
        (lambda stages: sys.exit(), r"its layout\(2\) raised SystemExit"),
    ],
    ids=[
        "first elsewhere",
        "empty stage",
        "unknown stage",
        "nothing",
        "raises",
        "real numbers",
        "bools",
        "endless",
        "exits",
    ],
)
def test_an_impossible_layout_of_a_users_schedule_is_refused(layout: Any, said: str) -> None:
    class Own(OneFOneB):
        def layout(self, stages: int) -> Sequence[int]:
            found: Sequence[int] = layout(stages)
            return found

    with pytest.raises(ConfigError, match=said):
        placed(Own(), 2)


def test_a_layout_may_be_an_array() -> None:
    class Own(OneFOneB):
        def layout(self, stages: int) -> Any:
            return np.arange(stages)

    assert [type(stage) for stage in placed(Own(), 2)] == [int, int]
