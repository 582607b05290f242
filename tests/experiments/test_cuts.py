"""Presets cut their networks into the modules and stages of their papers."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config.targets import make
from tests import conftest
from tests.conftest import compose_config
from tests.experiments.presets import (
    AUGLOCAL,
    EDSR,
    MANPP,
    MANPP_VIT,
    RESNET,
    RETINANET,
    STAGES,
    VIT,
    div2k_files,
    modules,
    modules_of_stages,
    number_in,
    prepared,
    scene_files,
    starts,
)


def alike(names: Sequence[str], without: str) -> list[list[str]]:
    """Group presets that cut the same network in the same places.

    Only one of each group is prepared.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(without, "", name)].append(name)
    return list(groups.values())


def first(names: list[str]) -> str:
    return names[0]


def without_slow(names: Sequence[str]) -> list[Any]:
    """Return parameters of a test.

    Those of ResNet-110 are slow, because preparing takes seconds. So are `SLOW_TOO`.
    """
    slow = [("resnet110" in name or name in SLOW_TOO) for name in names]
    return [pytest.param(n, marks=[pytest.mark.slow] * s) for n, s in zip(names, slow, strict=True)]


SLOW_TOO = [
    *("infopro_resnet32_k8", "infopro_resnet32_k16", "ppll_resnet32_k16s2", "manpp_resnet32_k16"),
    *("auglocal_resnet32_d3", "auglocal_resnet32_d5", "ppll_vit_base_cifar10_s2"),
    *("manpp_vit_small_k4", "manpp_vit_base_k4", "retinanet_voc", "fba_retinanet_voc"),
]
"""Presets that take long to prepare, and have cuts made as those of a faster one."""


SAME_MANPP = alike(MANPP, "_(stl10|svhn)")
# For STL-10, the balanced cuts into three modules are different.
SAME_RESNET = alike(RESNET, r"^(dgl|infopro)_|_(stl10|svhn)(?!_balanced_k3)")
STARTS = {
    "ppll_resnet32_k16s2": ["layer2.3"],
    "ppll_resnet32_k16s4": ["layer2.2", "layer3.0", "layer3.2"],
}
"""The first unit of each stage except the first, for presets whose paper or code gives it."""


SAME = [
    *alike(VIT, "_(cifar10|svhn|stl10)"),
    *SAME_RESNET,
    *SAME_MANPP,
    *alike(EDSR, r"_x\d"),
    *alike(RETINANET, "_(voc|coco)"),
]
"""Groups of presets that are cut alike. The tests below prepare one preset of each group."""


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, marks=[pytest.mark.slow] * ("resnet110" in names[0]))
        for names in SAME
        if len(names) > 1
    ],
    ids=first,
)
def test_presets_of_a_group_are_cut_alike(names: list[str]) -> None:
    def cut(name: str) -> dict[str, Any]:
        """Return the settings that decide where the network is cut into modules and stages."""
        config, _ = compose_config([f"experiment={name}"])
        local = {key: config["local"].get(key) for key in ("cuts", "modules", "depth")}
        keys = ("model", "partition", "schedule", "gpus", "fba")
        return {"local": local, **{key: config[key] for key in keys}}

    one, *others = map(cut, names)
    assert all(other == one for other in others)


@pytest.mark.parametrize(
    "name", without_slow(["ppll_vit_base_cifar10_s2", "ppll_vit_base_cifar10_s4"])
)
def test_presets_of_vision_transformers_have_the_papers_modules(name: str) -> None:
    result = prepared(name)
    assert modules(result) == [
        ["embed", "blocks.0"],
        *([f"blocks.{block}"] for block in range(1, 11)),
        ["blocks.11", "head"],
    ]
    assert modules_of_stages(result) == STAGES[name]
    block, head = result.subject.costs[1].params, result.subject.costs[-1].params
    assert block == 12 * 768**2 + 13 * 768  # as in the base size
    depths = [2, 2, 2, 1, 1, 1, 1, 1, 0, 0, 0]
    auxiliary = [depth * block + head for depth in depths]
    assert [cost.params for cost in result.auxiliary_costs] == [*auxiliary, 0]


@pytest.mark.parametrize("name", without_slow(MANPP_VIT))
def test_presets_of_man_plus_for_vision_transformers_have_three_blocks_a_module(name: str) -> None:
    result = prepared(name)
    assert [len(module) for module in modules(result)] == [4, 3, 3, 4]  # with the ends
    assert modules_of_stages(result) == STAGES[name]


@pytest.mark.parametrize("name", ["edsr_div2k_x4", "fba_edsr_div2k_x4"])
def test_presets_of_super_resolution_have_the_baselines_network(name: str, tmp_path: Path) -> None:
    result = conftest.prepared(f"experiment={name}", *div2k_files(name, tmp_path), "device=cpu")
    assert len(result.job.names) == 18
    assert starts(result) == (["body.4", "body.9", "body.13"] if name.startswith("fba") else [])
    assert modules_of_stages(result) == STAGES[name]
    millions = sum(cost.params for cost in result.subject.costs) / 1e6
    assert round(millions, 2) == 1.52  # as in the source, for x4


# Deeper detectors of MAN++ are cut alike, and take long.
@pytest.mark.parametrize(
    "name", without_slow(["retinanet_voc", "fba_retinanet_voc", "manpp_retinanet50_coco"])
)
def test_presets_of_detection_are_cut_before_each_group_of_units(name: str, tmp_path: Path) -> None:
    result = conftest.prepared(f"experiment={name}", *scene_files(name, tmp_path), "device=cpu")
    cuts = [] if name == "retinanet_voc" else ["layer2.0", "layer3.0", "layer4.0"]
    assert starts(result) == cuts
    assert modules(result)[-1][-1] == "head"
    assert modules_of_stages(result) == STAGES[name]


@pytest.mark.parametrize("name", without_slow([*map(first, SAME_RESNET)]))
def test_presets_of_residual_networks_have_the_named_cuts(name: str) -> None:
    config, _ = compose_config([f"experiment={name}"])
    result = prepared(name)
    k, cuts = number_in(name), config["local"]["cuts"]
    assert len(modules(result)) == k
    assert starts(result) == list(make("model", config["model"]).partitions[cuts])
    assert modules_of_stages(result) == STAGES[name]
    if name in STARTS:  # module 0 is the stem, module i the i-th residual unit
        stages = [result.job.names[cut] for cut in result.job.layout.cuts()]
        assert stages == STARTS[name]
        units = [[f"layer{group}.{unit}"] for group in (1, 2, 3) for unit in range(5)]
        assert modules(result) == [["stem"], *units[:-1], ["layer3.4", "head"]]


# The cuts of ResNet-110 differ by d as those of ResNet-32 do.
@pytest.mark.parametrize("name", without_slow([*AUGLOCAL[:3], "auglocal_resnet110_d5"]))
def test_presets_of_auglocal_have_the_papers_cuts(name: str) -> None:
    """AugLocal's K = 16 for ResNet-32 means 16 - d modules.

    The last one has the last d + 1 units.
    """
    config, _ = compose_config([f"experiment={name}"])
    d = int(name[-1])
    units = {"resnet32": 16, "resnet110": 55}[name.split("_")[1]]
    cuts = list(make("model", config["model"]).partitions[config["local"]["cuts"]])
    assert len(cuts) == units - d - 1
    result = prepared(name)
    found = modules(result)
    assert starts(result) == cuts
    assert len(found) == units - d
    assert [len(module) for module in found] == [1] * (units - d - 1) + [d + 2]  # with the head
    assert modules_of_stages(result) == STAGES[name]


@pytest.mark.parametrize("name", without_slow([*map(first, SAME_MANPP)]))
def test_presets_of_man_plus_have_the_papers_cuts(name: str) -> None:
    config, _ = compose_config([f"experiment={name}"])
    result = prepared(name)
    found = modules(result)
    assert found[0] == ["stem"]
    k = number_in(name)
    assert len(found) == (k if k in (16, 55) else k + 1)
    if k == 8:
        partitions = make("model", config["model"]).partitions
        assert starts(result) == ["layer1.0", *partitions["K8"]]
    if k == 32:
        assert [len(module) for module in found] == [1, *[2] * 22, *[1] * 9, 2]  # with the head
    assert modules_of_stages(result) == STAGES[name]


def test_ll_with_a_preset_trains_the_same_modules() -> None:
    name = "ppll_resnet32_k4s2"
    result = prepared(name, "schedule=ll")
    assert modules(result) == modules(prepared(name))
    assert modules_of_stages(result) == [len(modules(result))]
