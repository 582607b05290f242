"""The presets of conf/experiment: their values, and a run of one preset of each kind."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config import settings
from ppll_cli.config.options import conf_dir
from ppll_cli.config.settings import Settings
from ppll_cli.config.targets import make
from ppll_cli.prepare.preparation import Prepared, prepare
from tests.conftest import compose_config
from tests.data.picture_files import write_div2k
from tests.data.scene_files import write_coco, write_voc
from tests.worker.inside import run_inside

FILES = {path.stem: path for path in (conf_dir() / "experiment").glob("*.yaml")}

VIT = [f"ppll_vit_base_{data}_{s}" for data in ("cifar10", "svhn", "stl10") for s in ("s2", "s4")]
PPLL_RESNET = [f"ppll_resnet32_{ks}" for ks in ("k16s2", "k16s4", "k8s2", "k4s2")]
COMPARED = [
    f"{method}_{model}_k{k}"
    for method, model, k in product(
        ("infopro", "dgl"), ("resnet32", "resnet110"), ("2", "4", "8", "16")
    )
]
# InfoPro's and AugLocal's own settings, besides those with which DGL is compared.
INFOPRO = [
    f"infopro_resnet110_{data}_k{k}" for data, k in product(("stl10", "svhn"), (2, 4, 8, 16))
]
BALANCED = [
    f"infopro_resnet110_{data}balanced_k{k}" for data, k in product(("", "stl10_"), (2, 3, 4))
]
AUGLOCAL = [f"auglocal_{model}_d{d}" for model, d in product(("resnet32", "resnet110"), (1, 3, 5))]
RESNET = [*PPLL_RESNET, *COMPARED, *INFOPRO, *BALANCED]
MANPP = [
    f"manpp_{model}_{data}{k}"
    for (model, k), data in product(
        (("resnet32", "k8"), ("resnet32", "k16"), ("resnet110", "k32"), ("resnet110", "k55")),
        ("", "stl10_", "svhn_"),
    )
]
MANPP_VIT = [f"manpp_vit_{size}_k4" for size in ("tiny", "small", "base")]
MANPP_RETINANET = [f"manpp_retinanet{depth}_coco" for depth in (50, 101, 152)]
EDSR = [f"{method}edsr_div2k_x{scale}" for method, scale in product(("", "fba_"), (2, 3, 4))]
RETINANET = [f"{method}retinanet_{d}" for method, d in product(("", "fba_"), ("voc", "coco"))]


def modules_of(name: str) -> int:
    """Return the k in the name of a preset of residual networks."""
    return int(re.findall(r"k(\d+)", name)[0])


# Number of modules on each stage.
STAGES = {
    **{name: [5, 7] if name.endswith("s2") else [2, 3, 3, 4] for name in VIT},
    "ppll_resnet32_k16s2": [9, 7],
    "ppll_resnet32_k16s4": [8, 3, 2, 3],
    "ppll_resnet32_k8s2": [4, 4],
    "ppll_resnet32_k4s2": [2, 2],
    # Stages have equally many units, and the first of InfoPro's sixteen modules are smaller.
    **{
        name: {2: [1, 1], 4: [2, 2], 8: [4, 4], 16: [9, 7]}[modules_of(name)]
        for name in (*COMPARED, *INFOPRO)
    },
    **{name: {2: [1, 1], 3: [2, 1], 4: [3, 1]}[modules_of(name)] for name in BALANCED},
    "auglocal_resnet32_d1": [9, 6],
    "auglocal_resnet32_d3": [9, 4],
    "auglocal_resnet32_d5": [9, 2],
    "auglocal_resnet110_d1": [28, 26],
    "auglocal_resnet110_d3": [28, 24],
    "auglocal_resnet110_d5": [28, 22],
    # In K8 and K32 the stem is an additional module. In K16 and K55 it is one of the modules.
    **{
        name: {8: [5, 4], 16: [9, 7], 32: [15, 18], 55: [28, 27]}[modules_of(name)]
        for name in MANPP
    },
    **{name: [1, 1, 1, 1] for name in [*MANPP_VIT, *MANPP_RETINANET]},
    **{name: [2, 2] if name.startswith("fba") else [1] for name in [*EDSR, *RETINANET]},
}

SGD = {"name": "sgd", "momentum": 0.9, "clip_norm": None}
VIT_OPTIM: Mapping[str, object] = SGD | {
    "lr": 8e-4,
    "nesterov": False,
    "weight_decay": 5e-5,
    "schedule": "step",
    "milestones": [80, 120],
    "gamma": 0.1,
    "warmup_epochs": 0,
}
RESNET_OPTIM: Mapping[str, object] = SGD | {
    "lr": 0.8,
    "nesterov": True,
    "weight_decay": 1e-4,
    "schedule": "cosine_by_epoch",
    "warmup_epochs": 10,
    "warmup_lr": 0.01,
}
EDSR_OPTIM: Mapping[str, object] = {
    "name": "adamw",
    "lr": 1e-4,
    "betas": [0.9, 0.999],
    "weight_decay": 0,
    "schedule": "step",
    "milestones": [200],
    "gamma": 0.5,
    "warmup_epochs": 0,
}
# From InfoPro's commands for ResNet-110: l1 and l2 of the first and of the last auxiliary network.
CIFAR10_WEIGHTS = {2: [5, 0.5, 0, 0], 4: [1, 0, 0, 1], 8: [5, 0, 0, 1], 16: [5, 0, 0.5, 1]}
STL10_WEIGHTS = {2: [10, 1, 0, 0], 4: [20, 0.2, 5, 2], 8: [20, 0.2, 5, 1], 16: [20, 0.5, 10, 0.1]}
SVHN_WEIGHTS = {2: [1, 0.1, 0, 0], 4: [5, 0, 0.5, 1], 8: [5, 0, 0.5, 2], 16: [5, 0.2, 0.5, 1]}
BALANCED_WEIGHTS = {2: [5, 0.1, 0, 0], 3: [5, 0, 5, 0.1], 4: [5, 0, 5, 0.1]}
STL10_BALANCED_WEIGHTS = {2: [20, 1, 0, 0], 3: [20, 0.5, 5, 2], 4: [20, 0.5, 10, 1]}
WEIGHTS: Mapping[str, Any] = {
    "infopro_resnet110": CIFAR10_WEIGHTS,
    "infopro_resnet110_stl10": STL10_WEIGHTS,
    "infopro_resnet110_svhn": SVHN_WEIGHTS,
    "infopro_resnet110_balanced": BALANCED_WEIGHTS,
    "infopro_resnet110_stl10_balanced": STL10_BALANCED_WEIGHTS,
}
"""The weights by K. The key is the name of a preset without its K."""

CIFAR10 = ([v / 255 for v in (125.3, 123.0, 113.9)], [v / 255 for v in (63.0, 62.1, 66.7)])
FORMS: Mapping[str, Any] = {
    "cifar10": (*(pytest.approx(v, abs=1e-6) for v in CIFAR10), 4, "reflect", True),
    "stl10": ([0.5], [0.5], 4, "zeros", True),
    "svhn": ([0.5], [0.5], 2, "zeros", False),
}
"""Mean, standard deviation, padding and flips in the code of the quoted papers."""


FileWriter = Callable[[str, Path], list[str]]


def div2k_files(name: str, folder: Path) -> list[str]:
    """Write small pictures in the layout that the preset reads, and return overrides."""
    root = write_div2k(folder / "root", int(name[-1]))
    small = ["data.patch=8", "data.patches_per_epoch=16"]
    return [f"data.root={root}", f"data.cache={folder / 'cache'}", *small]


def scene_files(name: str, folder: Path) -> list[str]:
    """Write a few pictures with boxes, and return overrides with a narrow pyramid."""
    root = (write_voc if name.endswith("voc") else write_coco)(folder / "root")
    small = ["data.short_side=64", "data.long_side=64", "model.width=64", "batch_size=2"]
    return [f"data.root={root}", "data.download=false", *small]


# For each preset, a function that writes small files in the format of its data. Data sets for other
# tasks than classification cannot be replaced by random samples.
FILES_OF: Mapping[str, FileWriter] = {
    **dict.fromkeys(EDSR, div2k_files),
    **dict.fromkeys([*RETINANET, *MANPP_RETINANET], scene_files),
}


def synthetic(name: str, train_samples: int) -> list[str]:
    """Return overrides that replace the preset's data by random images of the same size."""
    size = 96 if "stl10" in name else 32
    samples = [f"data.train_samples={train_samples}", "data.test_samples=4"]
    return [f"experiment={name}", "data=synthetic", f"data.size={size}", *samples, "device=cpu"]


def prepared(name: str, *overrides: str) -> Prepared:
    batch_size = 128 if name in VIT or "stl10" in name else 1024
    return prepared_from(*synthetic(name, batch_size), *overrides)


def prepared_from(*overrides: str) -> Prepared:
    config, _ = compose_config([*overrides])
    return prepare(settings.parse(config), "unused")


def modules(result: Prepared) -> list[list[str]]:
    return [[result.units[index] for index in units] for units in result.job.layout.modules]


def starts(result: Prepared) -> list[str]:
    """Return the first unit of each module except the first."""
    return [units[0] for units in modules(result)[1:]]


def modules_of_stages(result: Prepared) -> list[int]:
    return [len(result.job.layout.of(stage)) for stage in range(result.job.stages)]


@dataclass(frozen=True)
class Preset:
    """A composed preset that the program accepts."""

    config: dict[str, Any]
    choices: dict[str, str]
    settings: Settings

    def cut(self) -> dict[str, Any]:
        """The settings that decide where the network is cut into modules and stages."""
        local = {key: self.config["local"].get(key) for key in ("cuts", "modules", "depth")}
        keys = ("model", "partition", "schedule", "gpus", "fba")
        return {"local": local, **{key: self.config[key] for key in keys}}

    def asked(self) -> tuple[int, int]:
        """Epochs and batch size."""
        return self.config["epochs"], self.config["batch_size"]


def accepted(name: str) -> Preset:
    """Compose a preset, and check properties that all presets share."""
    config, choices = compose_config([f"experiment={name}"])
    parsed = settings.parse(config)
    for group in ("model", "data", "local", "schedule"):
        arguments = {k: v for k, v in config[group].items() if k not in ("modules", "cuts")}
        make(group, arguments if group == "local" else config[group])
    assert choices["schedule"] == ("ppll" if sum(STAGES[name]) > 1 else "bp")
    package, comment = FILES[name].read_text().splitlines()[:2]
    assert package == "# @package _global_"
    assert re.match(r"# .*arXiv \d{4}\.\d{5}", comment)
    return Preset(config, choices, parsed)


def assert_optimizer(preset: Preset, expected: Mapping[str, object]) -> None:
    values = preset.settings.optim.model_dump()
    assert {key: values[key] for key in expected} == expected


def alike(names: Sequence[str], without: str) -> list[list[str]]:
    """Group presets that cut the same network in the same places.

    Only one of each group is prepared.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(without, "", name)].append(name)
    return list(groups.values())


def assert_cut_alike(presets: Sequence[Preset]) -> None:
    """Check that presets are cut alike.

    Otherwise the prepared one says nothing about the others.
    """
    assert all(preset.cut() == presets[0].cut() for preset in presets)


def first(names: list[str]) -> str:
    return names[0]


def without_deep(names: Iterable[str]) -> list[Any]:
    """Return parameters of a test.

    Those of ResNet-110 are slow, because preparing takes seconds.
    """
    deep = "resnet110"
    return [pytest.param(name, marks=[pytest.mark.slow] * (deep in name)) for name in names]


def test_every_preset_has_a_test() -> None:
    """Each preset is listed for the test of its network."""
    assert sorted(FILES) == sorted(
        [*VIT, *RESNET, *AUGLOCAL, *MANPP, *MANPP_VIT, *MANPP_RETINANET, *EDSR, *RETINANET]
    )
    assert STAGES.keys() == FILES.keys()


@pytest.mark.parametrize("names", alike(VIT, "_(cifar10|svhn|stl10)"), ids=first)
def test_presets_of_vision_transformers_have_the_papers_settings(names: list[str]) -> None:
    presets = [accepted(name) for name in names]
    for name, preset in zip(names, presets, strict=True):
        assert preset.choices["data"] == name.split("_")[3]
        data = preset.config["data"]
        assert (data["mean"], data["std"], data["pad"], data["flip"]) == ([0.5], [0.5], 0, False)
        assert preset.asked() == (160, 128)
        assert_optimizer(preset, VIT_OPTIM)
    assert_cut_alike(presets)

    result = prepared(names[0])
    assert modules(result) == [
        ["embed", "blocks.0"],
        *([f"blocks.{block}"] for block in range(1, 11)),
        ["blocks.11", "head"],
    ]
    assert modules_of_stages(result) == STAGES[names[0]]

    block, head = result.unit_costs[1].params, result.unit_costs[-1].params
    assert block == 12 * 768**2 + 13 * 768  # as in the base size
    depths = [2, 2, 2, 1, 1, 1, 1, 1, 0, 0, 0]
    auxiliary = [depth * block + head for depth in depths]
    assert [cost.params for cost in result.auxiliary_costs] == [*auxiliary, 0]


def accepted_residual(name: str) -> Preset:
    """Return a preset of residual networks, after checks of its method, data and numbers."""
    method, model, *_ = name.split("_")
    k = modules_of(name)
    preset = accepted(name)
    config, choices = preset.config, preset.choices
    named = next((data for data in ("stl10", "svhn") if data in name), "cifar10")
    assert (choices["model"], choices["data"]) == (model, named)
    assert choices["local"] == ("dgl" if method == "dgl" else "infopro")
    weights = WEIGHTS.get(name.rpartition("_")[0])
    assert config["local"].get("weights") == (weights and weights[k])
    data = config["data"]
    assert tuple(data[key] for key in ("mean", "std", "pad", "pad_mode", "flip")) == FORMS[named]
    partition = f"K{k}" + ("_balanced" if name in BALANCED else "")
    partition += "_stl10" if name == "infopro_resnet110_stl10_balanced_k3" else ""
    assert config["local"]["cuts"] == partition
    epochs, batch_size = 400 if method == "ppll" else 160, 128 if named == "stl10" else 1024
    assert preset.asked() == (epochs, batch_size)
    assert_optimizer(preset, {**RESNET_OPTIM, "lr": 0.1 if named == "stl10" else 0.8})
    return preset


# For STL-10, the balanced cuts into three modules are different.
SAME_RESNET = alike(RESNET, r"^(dgl|infopro)_|_(stl10|svhn)(?!_balanced_k3)")
STARTS = {
    "ppll_resnet32_k16s2": ["layer2.3"],
    "ppll_resnet32_k16s4": ["layer2.2", "layer3.0", "layer3.2"],
}
"""The first unit of each stage except the first, for presets whose paper or code gives it."""


@pytest.mark.parametrize("names", SAME_RESNET, ids=first)
def test_presets_of_residual_networks_have_the_papers_settings(names: list[str]) -> None:
    assert_cut_alike([accepted_residual(name) for name in names])


@pytest.mark.parametrize("name", without_deep(map(first, SAME_RESNET)))
def test_presets_of_residual_networks_have_the_named_cuts(name: str) -> None:
    config, _ = compose_config([f"experiment={name}"])
    result = prepared(name)
    k, cuts = modules_of(name), config["local"]["cuts"]
    assert len(modules(result)) == k
    assert starts(result) == list(make("model", config["model"]).partitions[cuts])
    assert modules_of_stages(result) == STAGES[name]
    if name in STARTS:  # module 0 is the stem, module i the i-th residual unit
        stages = [result.units[cut] for cut in result.job.layout.cuts()]
        assert stages == STARTS[name]
        units = [[f"layer{group}.{unit}"] for group in (1, 2, 3) for unit in range(5)]
        assert modules(result) == [["stem"], *units[:-1], ["layer3.4", "head"]]


@pytest.mark.parametrize("name", AUGLOCAL)
def test_presets_of_auglocal_have_the_papers_settings(name: str) -> None:
    _, model, depth = name.split("_")
    d = int(depth[1:])
    preset = accepted(name)
    choices, local = preset.choices, preset.config["local"]
    assert (choices["model"], choices["local"], choices["data"]) == (model, "auglocal", "cifar10")
    assert (local["cuts"], local["depth"], local["tau"]) == (f"auglocal_d{d}", d, 0.5)
    data = preset.config["data"]
    form = tuple(data[key] for key in ("mean", "std", "pad", "pad_mode", "flip"))
    assert form == FORMS["cifar10"]
    assert preset.asked() == (400, 1024)
    assert_optimizer(preset, RESNET_OPTIM)


# The cuts of ResNet-110 differ by d as those of ResNet-32 do.
@pytest.mark.parametrize("name", without_deep([*AUGLOCAL[:3], "auglocal_resnet110_d5"]))
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


SAME_MANPP = alike(MANPP, "_(stl10|svhn)")


@pytest.mark.parametrize("names", SAME_MANPP, ids=first)
def test_presets_of_man_plus_have_the_papers_settings(names: list[str]) -> None:
    presets = [accepted(name) for name in names]
    for name, preset in zip(names, presets, strict=True):
        config, choices = preset.config, preset.choices
        named = next((data for data in ("stl10", "svhn") if data in name), "cifar10")
        assert (choices["model"], choices["data"]) == (name.split("_")[1], named)
        assert (choices["local"], config["local"]["momentum"]) == ("manpp", 0.995)
        form = tuple(config["data"][k] for k in ("mean", "std", "pad", "pad_mode", "flip"))
        assert form == FORMS[named]
        assert preset.asked() == (400, 128 if named == "stl10" else 1024)
        assert_optimizer(preset, {**RESNET_OPTIM, "lr": 0.1 if named == "stl10" else 0.8})
    assert_cut_alike(presets)


@pytest.mark.parametrize("name", without_deep(map(first, SAME_MANPP)))
def test_presets_of_man_plus_have_the_papers_cuts(name: str) -> None:
    config, _ = compose_config([f"experiment={name}"])
    result = prepared(name)
    found = modules(result)
    assert found[0] == ["stem"]
    k = modules_of(name)
    assert len(found) == (k if k in (16, 55) else k + 1)
    if k == 8:
        partitions = make("model", config["model"]).partitions
        assert starts(result) == ["layer1.0", *partitions["K8"]]
    if k == 32:
        assert [len(module) for module in found] == [1, *[2] * 22, *[1] * 9, 2]  # with the head
    assert modules_of_stages(result) == STAGES[name]


@pytest.mark.parametrize("name", MANPP_VIT)
def test_presets_of_man_plus_for_vision_transformers_have_the_papers_settings(name: str) -> None:
    preset = accepted(name)
    size = {"tiny": 192, "small": 384, "base": 768}[name.split("_")[2]]
    assert (preset.choices["data"], preset.choices["local"]) == ("imagenet", "manpp")
    assert (preset.config["model"]["dim"], preset.config["model"]["heads"]) == (size, size // 64)
    assert preset.asked() == (90, 1024)
    assert_optimizer(preset, {"name": "adamw", "lr": 1e-3})
    result = prepared(name)
    assert [len(module) for module in modules(result)] == [4, 3, 3, 4]  # 3 blocks, and the ends
    assert modules_of_stages(result) == STAGES[name]


@pytest.mark.parametrize("names", alike(EDSR[::-1], r"_x\d"), ids=first)
def test_presets_of_super_resolution_have_the_baselines_settings(
    names: list[str], tmp_path: Path
) -> None:
    """All presets train as the baseline does. Those with `fba_` only add modules."""
    presets = [accepted(name) for name in names]
    for name, preset in zip(names, presets, strict=True):
        config = preset.config
        assert (preset.choices["model"], preset.choices["data"]) == ("edsr", "div2k")
        data = config["data"]
        assert (data["scale"], data["patch"], data["flip"]) == (int(name[-1]), 48, True)
        assert data["patches_per_epoch"] == 1000 * config["batch_size"] == 16000
        assert config["fba"]["enabled"] == name.startswith("fba")
        assert config["fba"].get("features") == ("first" if name.startswith("fba") else None)
        assert preset.asked() == (300, 16)
        assert_optimizer(preset, EDSR_OPTIM)
    assert_cut_alike(presets)

    name = names[0]
    result = prepared_from(f"experiment={name}", *div2k_files(name, tmp_path), "device=cpu")
    assert len(result.units) == 18
    expected = ["body.4", "body.9", "body.13"] if name.startswith("fba") else []
    assert starts(result) == expected
    assert modules_of_stages(result) == STAGES[name]
    millions = sum(cost.params for cost in result.unit_costs) / 1e6
    assert round(millions, 2) == 1.52  # as in the source, for x4


@pytest.mark.parametrize("names", alike(RETINANET, "_(voc|coco)"), ids=first)
def test_presets_of_detection_share_their_settings_and_cuts(
    names: list[str], tmp_path: Path
) -> None:
    presets = [accepted(name) for name in names]
    for name, preset in zip(names, presets, strict=True):
        config, choices = preset.config, preset.choices
        assert (choices["model"], choices["data"]) == ("retinanet", name.split("_")[-1])
        assert (config["model"]["depth"], config["model"]["width"]) == (50, 256)
        assert config["fba"]["enabled"] == name.startswith("fba")
        assert preset.asked() == (12, 16)
        assert_optimizer(preset, SGD | {"lr": 0.01, "weight_decay": 1e-4, "milestones": [8, 11]})
    assert_cut_alike(presets)

    name = names[0]
    result = prepared_from(f"experiment={name}", *scene_files(name, tmp_path), "device=cpu")
    cuts = ["layer2.0", "layer3.0", "layer4.0"]
    assert starts(result) == (cuts if name.startswith("fba") else [])
    assert modules(result)[-1][-1] == "head"
    assert modules_of_stages(result) == STAGES[name]


@pytest.mark.parametrize("name", MANPP_RETINANET)
def test_presets_of_man_plus_for_detectors_have_the_papers_settings(
    name: str, tmp_path: Path
) -> None:
    preset = accepted(name)
    config, choices = preset.config, preset.choices
    assert (choices["model"], choices["local"], choices["data"]) == ("retinanet", "manpp", "coco")
    assert config["model"]["depth"] == int(re.findall(r"\d+", name)[0])
    assert (config["local"]["detection_head"], config["data"]["short_side"]) == ("level", 600)
    assert preset.asked() == (12, 16)
    assert_optimizer(preset, SGD | {"lr": 0.01, "weight_decay": 1e-4, "milestones": [8, 11]})
    if config["model"]["depth"] == 50:  # the others are cut alike, and take long
        found = prepared_from(f"experiment={name}", *scene_files(name, tmp_path), "device=cpu")
        assert starts(found) == ["layer2.0", "layer3.0", "layer4.0"]
        assert modules_of_stages(found) == STAGES[name]


def test_ll_with_a_preset_trains_the_same_modules() -> None:
    name = "ppll_resnet32_k4s2"
    result = prepared(name, "schedule=ll")
    assert modules(result) == modules(prepared(name))
    assert modules_of_stages(result) == [len(modules(result))]


def test_the_command_line_overrides_a_preset() -> None:
    overrides = [
        *("data=digits", "data.pad=1", "model=resnet110", "local=greedy", "local.cuts=K4"),
        *("partition=params", "partition.cuts=null", "schedule=ll", "optim=adamw", "optim.lr=0.5"),
        *("epochs=3", "gpus=3"),
    ]
    config, choices = compose_config(["experiment=ppll_resnet32_k16s2", *overrides])
    settings.parse(config)
    given: dict[str, Any] = dict(override.split("=") for override in overrides)
    groups = {key: value for key, value in given.items() if key in choices}
    assert len(groups) == 6
    assert {group: choices[group] for group in groups} == groups
    assert (config["data"]["pad"], config["local"]["cuts"]) == (1, "K4")
    assert (config["optim"]["name"], config["optim"]["lr"]) == ("adamw", 0.5)
    assert (config["epochs"], config["gpus"]) == (3, 3)


def test_a_recipe_can_be_used_without_a_preset() -> None:
    config, choices = compose_config(["recipe=infopro_cifar10", "model=resnet18", "local=fba"])
    settings.parse(config)
    assert (choices["model"], choices["local"], choices["data"]) == ("resnet18", "fba", "cifar10")
    assert (config["epochs"], config["batch_size"], config["optim"]["lr"]) == (160, 1024, 0.8)


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
    "ppll_vit_base_cifar10_s2",
    "ppll_resnet32_k4s2",
    "dgl_resnet32_k2",
    "manpp_resnet32_k8",
    "fba_edsr_div2k_x2",
    "retinanet_voc",
]
"""Presets that are always trained, one for each kind of data and network.

The others of `TRAINED` are slow tests.
"""


def smallest(name: str, folder: Path) -> list[str]:
    """Return overrides that give a preset few and small batches of its own kind of data."""
    if name in FILES_OF:
        data = [f"experiment={name}", *FILES_OF[name](name, folder)]
    else:
        data = synthetic(name, 8)
    overrides = ["batch_size=4", "max_steps=2", *data]
    # Networks of full size would take minutes. The transformer keeps its depth, heads and cuts. A
    # detector with 18 layers has the cuts of that with 50.
    if name in VIT:
        overrides.append("model.dim=48")
    if name in (*RETINANET, *MANPP_RETINANET):
        overrides.append("model.depth=18")
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
