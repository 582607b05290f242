"""Mixup and CutMix in runs inside the test. All schedules, stages and replicas train the same."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ppll_cli import load_run
from ppll_cli.job.checkpoint import unfinished_folder
from ppll_cli.launch.evaluation import evaluate
from tests.conftest import assert_same
from tests.finished import finished_run
from tests.worker.cases import DATA, FEW_STEPS, METHODS, RESNET, SGD, VIT
from tests.worker.inside import Outcome, run_inside

MIXED = ["data.mixup=0.4", "data.cutmix=1.0"]
SMOOTHED = [*MIXED, "optim.label_smoothing=0.1"]


def inside(folder: Path, *overrides: str) -> Outcome:
    return run_inside(folder, *DATA, FEW_STEPS, *overrides)


def assert_same_run(one: Outcome, other: Outcome) -> None:
    assert_same(one.tensors, other.tensors)
    assert one.test == other.test
    assert one.test


LOCAL = METHODS | {
    "greedy": ["local=greedy"],
    "dgl": ["local=dgl"],
    "man": ["local=man"],
    "manpp": ["local=manpp"],
    "similar": ["local=predsim", "local.similarity=1"],
}


ALWAYS = ["infopro"]


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m not in ALWAYS)) for m in LOCAL]
)
def test_every_method_learns_the_same_in_a_pipeline(tmp_path: Path, method: str) -> None:
    case = [*DATA, *SMOOTHED, *LOCAL[method], *RESNET, *SGD, "model.depth=8", "max_steps=3"]
    case += ["local.modules=4"]
    expected = run_inside(tmp_path / "ll", "schedule=ll", *case)
    found = run_inside(tmp_path / "ppll", "schedule=ppll", "gpus=2", *case)
    assert_same_run(found, expected)
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())


def test_vit_blocks_learn_the_same_in_a_pipeline(tmp_path: Path) -> None:
    case = [*SMOOTHED, "local=vit_blocks", *VIT, "local.modules=4"]
    expected = inside(tmp_path / "ll", "schedule=ll", *case)
    assert_same_run(inside(tmp_path / "ppll", "schedule=ppll", "gpus=2", *case), expected)


def test_back_propagation_is_the_same_in_a_pipeline(tmp_path: Path) -> None:
    """Batches are whole, or split: each micro-batch is a part of one mixed batch."""
    case = [*SMOOTHED, *VIT]
    whole = inside(tmp_path / "bp", "schedule=bp", *case)
    assert_same_run(inside(tmp_path / "pp", "schedule=pp", "gpus=3", *case), whole)
    case.append("schedule.microbatches=3")
    parts = inside(tmp_path / "parts", "schedule=bp", *case)
    found = inside(tmp_path / "1f1b", "schedule=1f1b", "gpus=2", *case)
    assert_same_run(found, parts)
    for name, tensor in parts.tensors.items():  # the gradients are added in another order
        if name.startswith("model.") and tensor.is_floating_point():
            torch.testing.assert_close(tensor, whole.tensors[name], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("schedule", ["bp", pytest.param("pp", marks=pytest.mark.slow)])
def test_two_replicas_train_on_the_same_mixed_batch_as_one(tmp_path: Path, schedule: str) -> None:
    """The whole batch is mixed before it is divided among the replicas."""
    one = inside(tmp_path / "one", "schedule=bp", "schedule.microbatches=2", *SMOOTHED, *VIT)
    gpus = 2 if schedule == "bp" else 4
    shape = [f"schedule={schedule}", f"gpus={gpus}", "replicas=2"]
    two = inside(tmp_path / "two", *shape, *SMOOTHED, *VIT)
    assert two.job.replicas == 2
    assert_same(two.tensors, one.tensors)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """The run stops in the middle of an epoch, and resumes with other stages."""
    case = [*DATA, *SMOOTHED, *VIT, "local.modules=4"]
    whole = run_inside(tmp_path / "whole", *case, "schedule=ppll", "gpus=2", FEW_STEPS)
    stopping = ["checkpoint.every=2", "max_steps=2"]
    run_inside(tmp_path / "before", *case, "schedule=ppll", "gpus=3", *stopping)
    found = run_inside(
        tmp_path / "after",
        *(*case, "schedule=ppll", "gpus=2", FEW_STEPS),
        start=2,
        checkpoint=unfinished_folder(tmp_path / "before", 2),
    )
    assert_same(found.tensors, whole.tensors)


@pytest.mark.parametrize(
    "keys",
    [*(pytest.param([key], marks=pytest.mark.slow) for key in MIXED), MIXED],
    ids=["mixup", "cutmix", "both"],
)
def test_mixing_changes_what_is_trained_and_what_travels(
    tmp_path: Path, keys: Sequence[str]
) -> None:
    """With mixing, the other label and the share are also sent: 16 bytes for each sample."""
    usual = ["schedule=ppll", "gpus=2", *VIT]
    plain, mixed = inside(tmp_path / "plain", *usual), inside(tmp_path / "mixed", *usual, *keys)
    names = [outcome.job.routes.into[1].names for outcome in (plain, mixed)]
    assert names == [("label", "x"), ("label", "label.other", "label.share", "x")]
    (channel,) = plain.sent
    # There are 21 and 8 training samples. The test set has 7 samples, and is evaluated twice.
    assert mixed.sent[channel] - plain.sent[channel] == 16 * (21 + 8 + 2 * 7)
    assert any(not tensor.equal(mixed.tensors[name]) for name, tensor in plain.tensors.items())


def test_evaluations_use_the_plain_labels(tmp_path: Path) -> None:
    """`ppll-eval` does not mix images, and finds the same numbers as the run."""
    finished = finished_run(tmp_path / "run", *DATA, FEW_STEPS, *VIT, *SMOOTHED)
    run = load_run(finished.folder)
    assert not getattr(run.task, "mixed", True)
    assert evaluate(run, "test").result == finished.test
