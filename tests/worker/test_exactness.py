"""The basic promise of the program: configurations that should train the same have the same bits.

The runs are inside the test, with threads as workers. `tests/launch/test_exactness.py` shows that
processes change nothing, and `test_pipelines.py` has the schedules that split batches.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import Unit
from tests.conftest import assert_same, own_model
from tests.worker.cases import DATA, FEW_STEPS, METHODS, RESNET, SGD, VIT
from tests.worker.inside import Outcome, run_inside


def inside(folder: Path, *overrides: str) -> Outcome:
    """Run with the data of these tests."""
    return run_inside(folder, *DATA, FEW_STEPS, "log_every=2", *overrides)


def assert_same_run(one: Outcome, other: Outcome) -> None:
    """Check that the final tensors are equal, and the reports of each module."""
    assert_same(one.tensors, other.tensors)
    assert one.test == other.test
    assert one.test
    assert one.train == other.train
    assert {step for step, _ in one.train} >= {2, 4}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(["local=vit_blocks", "local.modules=4", *VIT], marks=pytest.mark.slow),
        ["local=dgl", "local.modules=5", *RESNET, *SGD, "optim.clip_norm=0.5"],
        pytest.param(
            ["local.cuts=[blocks.1,blocks.3]", *VIT, "model.pooling=mean", "optim.clip_norm=0.1"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["vit", "resnet", "cuts"],
)
def test_ppll_is_sequential_local_learning(tmp_path: Path, case: list[str]) -> None:
    """Modules learn the same for every partition into stages."""
    modules = 3 if "local.cuts" in case[0] else int(case[1][-1])
    expected = inside(tmp_path, "schedule=ll", "gpus=1", *case)
    assert any(name.startswith("auxiliary.") for name in expected.tensors)
    for gpus in (2, min(modules, 4)):
        pipelined = inside(tmp_path, "schedule=ppll", f"gpus={gpus}", *case)
        assert pipelined.job.stages == gpus
        assert_same_run(pipelined, expected)


class Projected(LocalMethod):
    """Adds noise, which `exports` draws, and projects by a matrix, which the constructor draws."""

    def __init__(self) -> None:
        self.matrix = torch.randn(16, 16)

    def exports(self, site: Site) -> list[Unit]:
        name = f"noise.{site.module}"
        return [Unit(name, partial(_Noise, torch.randn(16)), (site.feature,), (name,))]

    def criterion(self, site: Site) -> Criterion:
        project = nn.Linear(16, 16, bias=False).requires_grad_(False)
        if not project.weight.is_meta:
            project.weight.copy_(self.matrix)
        head = _Added(project, site.task.smallest_head(site.spec.shape))
        return Criterion(head, (site.feature, f"noise.{site.module}"), site.task)


class _Noise(nn.Module):
    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.noise.to(x.device).expand_as(x)


class _Added(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        out: Tensor = self.layers(x + noise)
        return out


def test_random_numbers_that_a_method_draws_do_not_depend_on_the_stages(tmp_path: Path) -> None:
    case = [f"local._target_={__name__}.Projected", "local.modules=3", *VIT]
    expected = inside(tmp_path, "schedule=ll", *case)
    name = "auxiliary.{}.head.layers.0.weight"
    assert torch.equal(expected.tensors[name.format(0)], expected.tensors[name.format(1)])
    assert_same_run(inside(tmp_path, "schedule=ppll", "gpus=2", *case), expected)


EVERY_UNIT = {"resnet": [*RESNET, *SGD, "local.modules=8"], "vit": [*VIT, "local.modules=6"]}
ALWAYS = [("vit", "infopro"), ("vit", "fba"), ("resnet", "predsim")]
"""Pairs that are always tested. Other methods hand on the same: the image, the bank, or nothing."""


@pytest.mark.parametrize(
    ("method", "model"),
    [
        pytest.param(method, model, marks=[pytest.mark.slow] * ((model, method) not in ALWAYS))
        for method in METHODS
        for model in EVERY_UNIT
    ],
)
def test_every_method_learns_the_same_in_a_pipeline(
    tmp_path: Path, model: str, method: str
) -> None:
    """Each unit is a module. The image and the bank pass through stages that do not read them."""
    case = [*METHODS[method], *EVERY_UNIT[model]]
    expected = inside(tmp_path, "schedule=ll", "gpus=1", *case)
    assert_same_run(inside(tmp_path, "schedule=ppll", "gpus=3", *case), expected)


ONE_ALWAYS = [pytest.param("resnet", marks=pytest.mark.slow), "vit"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ONE_ALWAYS)
def test_the_ablation_without_fusion_is_the_local_module_alone(tmp_path: Path, model: str) -> None:
    case = ["gpus=2", *EVERY_UNIT[model]]
    alone = inside(tmp_path, "local=fba", *case)
    assert_same_run(inside(tmp_path, "fba=on", "fba.fusion=none", *case), alone)


@pytest.mark.parametrize("model", ONE_ALWAYS)
def test_a_probe_beside_a_module_does_not_change_its_training(tmp_path: Path, model: str) -> None:
    case = ["gpus=2", *EVERY_UNIT[model]]
    alone = inside(tmp_path, "local=fba", *case)
    probed = inside(tmp_path, "fba=on", "fba.trains=probe", "fba.measure_zeroed=true", *case)
    assert_same({name: probed.tensors[name] for name in alone.tensors}, alone.tensors)
    beyond = probed.tensors.keys() - alone.tensors.keys()
    assert beyond
    assert all(".probe." in name for name in beyond)
    for at, (_, scores) in alone.test.items():
        assert probed.test[at][1]["accuracy"] == scores["accuracy"]


@pytest.mark.parametrize("model", ONE_ALWAYS)
def test_measuring_a_bank_of_zeros_does_not_change_training(tmp_path: Path, model: str) -> None:
    case = ["gpus=2", "fba=on", *EVERY_UNIT[model]]
    plain = inside(tmp_path, *case)
    measured = inside(tmp_path, "fba.measure_zeroed=true", *case)
    assert_same(measured.tensors, plain.tensors)
    assert measured.train == plain.train
    modules = len(plain.job.layout.modules)
    for (step, module), (loss, scores) in plain.test.items():
        found = dict(measured.test[step, module][1])
        assert ("accuracy_bank_zeroed" in found) == (0 < module < modules - 1)
        found.pop("accuracy_bank_zeroed", None)
        assert (measured.test[step, module][0], found) == (loss, scores)


@pytest.mark.parametrize("gpus", [2, 3])
def test_modules_that_follow_the_stages_are_the_same_for_ll(tmp_path: Path, gpus: int) -> None:
    overrides = [f"gpus={gpus}", *VIT, "partition=params"]
    sequential = inside(tmp_path, "schedule=ll", *overrides)
    assert len(sequential.job.layout.modules) == gpus
    assert sequential.job.stages == 1
    assert_same_run(inside(tmp_path, "schedule=ppll", *overrides), sequential)


BACKWARD_CASES = {
    "vit": [*VIT, "optim.schedule=cosine", "optim.clip_norm=0.5"],
    "resnet": [*RESNET, *SGD, "optim.clip_norm=0.5", "optim.schedule=step", "optim.milestones=[1]"],
    "unclipped": [*RESNET, *SGD, "optim.warmup_epochs=1", "data.drop_last=true"],
    "skips": [*own_model("Skipping"), "optim.clip_norm=0.1"],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("vit", "unclipped")))
        for name in BACKWARD_CASES
    ],
)
def test_naive_pipeline_is_back_propagation(tmp_path: Path, name: str) -> None:
    """A skip passes through stages that also read it. One backward call adds both gradients."""
    expected = inside(tmp_path, "schedule=bp", *BACKWARD_CASES[name])
    for gpus in (1, 3):
        found = inside(tmp_path, "schedule=pp", f"gpus={gpus}", *BACKWARD_CASES[name])
        assert_same_run(found, expected)


def test_detached_skips_travel_forward(tmp_path: Path) -> None:
    case = [*own_model("Skipping"), "local.modules=5"]
    expected = inside(tmp_path, "schedule=ll", *case)
    for gpus in (3, 5):
        assert_same_run(inside(tmp_path, "schedule=ppll", f"gpus={gpus}", *case), expected)


@pytest.mark.parametrize("model", ["index_models.Indices", "Strided"])
def test_views_travel_as_ll_reads_them(tmp_path: Path, model: str) -> None:
    """A view of a weight that the module's step changes, and a slice, which a slot makes dense."""
    case = [*own_model(model), "local.modules=5"]
    expected = inside(tmp_path, "schedule=ll", *case)
    for gpus in (2, 5):
        assert_same_run(inside(tmp_path, "schedule=ppll", f"gpus={gpus}", *case), expected)


def test_random_numbers_of_evaluation_do_not_depend_on_the_stages(tmp_path: Path) -> None:
    method = "local._target_=tests.noisy.NoisyHeads"
    case = [*own_model("noisy.Noisy"), method, "local.modules=5"]
    expected = inside(tmp_path, "schedule=ll", *case)
    for gpus in (2, 5):
        assert_same_run(inside(tmp_path, "schedule=ppll", f"gpus={gpus}", *case), expected)


def test_micro_batches_make_a_difference(tmp_path: Path) -> None:
    """BatchNorm gets other statistics from micro-batches.

    So the other comparisons mean something.
    """
    whole = inside(tmp_path, "schedule=bp", *RESNET, *SGD).tensors
    parts = inside(tmp_path, "schedule=bp", "schedule.microbatches=2", *RESNET, *SGD).tensors
    name = "model.stem.bn1.running_mean"
    assert not (whole[name] == parts[name]).all()


@pytest.mark.parametrize(
    ("schedule", "per_batch"),
    [
        ("bp", 1),
        ("gpipe", 2),
        ("ppll", 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("ll", 1), ("pp", 1), ("1f1b", 2), ("zb_h1", 2))
        ),
    ],
)
def test_batch_norm_counts_training_batches_only(
    tmp_path: Path, schedule: str, per_batch: int
) -> None:
    """Torch's pipelining once ran a forward pass to find shapes, which BatchNorm counted."""
    microbatches = [f"schedule.microbatches={per_batch}"]
    case = ["gpus=2", "local=dgl", "max_steps=3", "data.drop_last=true", *DATA, *RESNET, *SGD]
    tensors = run_inside(tmp_path, f"schedule={schedule}", *microbatches, *case).tensors
    counters = {n: int(t) for n, t in tensors.items() if n.endswith("num_batches_tracked")}
    assert len(counters) > 10
    assert set(counters.values()) == {3 * per_batch}
