"""`recompute=true` changes no bit, for any model and schedule."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_same, own_model, with_settings
from tests.worker.cases import DATA, RESNET, SGD, VIT
from tests.worker.chunks import MODELS, job_of, kinds, trained
from tests.worker.inside import Outcome, run_inside

CASES = {
    "vit": [*VIT, "model.attention_dropout=0.1", "optim.clip_norm=0.1"],
    "resnet": [*RESNET, *SGD, "optim.nonfinite=skip"],
    "vit bf16": [*VIT, "precision=bf16"],
    "resnet bf16": [*RESNET, *SGD, "precision=bf16"],
    "skips": own_model("Skipping"),
    "views": own_model("Views"),
}
LOCAL = ["local=dgl", "local.modules=4"]
SPLIT = ["schedule.microbatches=3"]
ALWAYS = {"bp": "vit bf16", "1f1b": "resnet", "ppll": "vit"}
"""The model that a schedule always trains. All other pairs are slow tests."""

SHAPES = {
    "bp": ("whole", ["schedule=bp"]),
    "pp": ("whole", ["schedule=pp", "gpus=3"]),
    "gpipe": ("split", ["schedule=gpipe", "gpus=3", *SPLIT]),
    "1f1b": ("split", ["schedule=1f1b", "gpus=2", *SPLIT]),
    "interleaved": ("split", ["schedule=interleaved", "gpus=2", *SPLIT]),
    "ll": ("local", ["schedule=ll", *LOCAL]),
    "ppll": ("local", ["schedule=ppll", "gpus=3", *LOCAL]),
}
"""By schedule: the schedule that trains the same without recomputing, and the overrides."""

SAME = {
    "whole": ["schedule=bp"],
    "split": ["schedule=bp", *SPLIT],
    "local": ["schedule=ll", *LOCAL],
}


def inside(folder: Path, *overrides: str) -> Outcome:
    return run_inside(folder, *DATA, "max_steps=3", *overrides)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outcome]:
    """Return a function that trains without recomputing, once per case."""

    @cache
    def run(name: str, same: str) -> Outcome:
        return inside(tmp_path_factory.mktemp("expected"), *SAME[same], *CASES[name])

    return run


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=[pytest.mark.slow] * (name != ALWAYS.get(shape)))
        for name in CASES
        for shape in SHAPES
    ],
)
def test_every_schedule_ends_with_the_same_bits(
    expected: Callable[[str, str], Outcome], tmp_path: Path, name: str, shape: str
) -> None:
    """Equal are weights, the optimizer's state, BatchNorm's statistics, and evaluations."""
    same, how = SHAPES[shape]
    found = inside(tmp_path, "recompute=true", *how, *CASES[name])
    assert found.job.settings.recompute
    assert_same(found.tensors, expected(name, same).tensors)
    assert found.test == expected(name, same).test
    assert found.test


SYNCED = ["sync_batchnorm=true", "data.drop_last=true"]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            ["schedule=1f1b", "gpus=4", "schedule.microbatches=2", *VIT], marks=pytest.mark.slow
        ),
        ["schedule=bp", "gpus=2", *RESNET, *SGD, *SYNCED],
        pytest.param(["schedule=ppll", "gpus=4", *LOCAL, *RESNET, *SGD], marks=pytest.mark.slow),
    ],
    ids=["vit", "synced", "local"],
)
def test_replicas_average_the_same_gradients(tmp_path: Path, case: list[str]) -> None:
    """Hooks of gradients run only once.

    A synced BatchNorm exchanges data in the second pass too.
    """
    kept = inside(tmp_path / "kept", "replicas=2", *case)
    found = inside(tmp_path / "found", "replicas=2", "recompute=true", *case)
    assert_same(found.tensors, kept.tensors)
    assert found.test == kept.test


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(m, marks=[pytest.mark.slow] * (m not in ("vit", "skipping", "resnet32")))
        for m in MODELS
    ],
)
def test_every_unit_has_the_same_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, list[str]], model: str
) -> None:
    """Inputs and parameters are compared in autocast, after steps. Micro-batches have two sizes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = job_of(tmp_path, files, model, "precision=bf16")
    for number in kinds(job):
        expected, sent = trained(job, number)
        found, again = trained(with_settings(job, recompute=True), number)
        assert_same(found, expected)
        assert len(sent) == len(again)
        assert all(map(torch.equal, again, sent))
