"""A preset of each kind is trained for two steps."""

from math import isfinite
from pathlib import Path

import pytest

from tests.experiments.presets import (
    EDSR,
    FILES_OF,
    MANPP_RETINANET,
    RETINANET,
    STAGES,
    VIT,
    synthetic,
)
from tests.worker.inside import run_inside

TRAINED = [
    "ppll_vit_base_cifar10_s2",
    "ppll_resnet32_k4s2",
    "dgl_resnet32_k2",
    "infopro_resnet110_k2",
    "auglocal_resnet32_d5",
    "manpp_resnet32_k8",
    "manpp_vit_tiny_k4",
    "manpp_retinanet50_coco",
    "edsr_div2k_x2",
    "fba_edsr_div2k_x2",
    "retinanet_voc",
    "fba_retinanet_coco",
]
"""One preset for each method and kind of network.

The tests above check the cuts, numbers and data in which the other presets differ.
"""

ALWAYS = [
    "ppll_resnet32_k4s2",
    "dgl_resnet32_k2",
    "fba_edsr_div2k_x2",
]
"""Presets that are always trained, because they are small. The other ones are slow tests."""


def smallest(name: str, folder: Path) -> list[str]:
    """Return overrides that give a preset few and small batches of its own kind of data."""
    if name in FILES_OF:
        data = [f"experiment={name}", *FILES_OF[name](name, folder)]
    else:
        data = synthetic(name, 8)
    overrides = ["batch_size=4", "max_steps=2", *data]
    # Networks of full size would take minutes. The transformer keeps its depth, heads and cuts. A
    # narrow detector with 18 layers has the cuts of that with 50.
    if name in VIT:
        overrides.append("model.dim=48")
    if name in (*RETINANET, *MANPP_RETINANET):
        overrides += ["model.depth=18", "model.width=64"]
    if name in EDSR:
        overrides.append("model.width=8")
    return overrides


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in ALWAYS)) for name in TRAINED],
)
def test_a_preset_trains(name: str, tmp_path: Path) -> None:
    found = run_inside(tmp_path, *smallest(name, tmp_path))
    job = found.job
    assert [len(job.layout.of(stage)) for stage in range(job.stages)] == STAGES[name]
    assert {step for step, _ in found.test} == {2}
    assert {module for _, module in found.test} == {*range(len(job.layout.modules))}
    assert all(isfinite(loss) for loss, _ in found.test.values())
