"""The presets of conf/experiment have the settings of their papers."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from ppll_cli.config import settings
from ppll_cli.config.targets import make
from tests.conftest import compose_config
from tests.experiments.presets import (
    AUGLOCAL,
    BALANCED,
    EDSR,
    FILES,
    MANPP,
    MANPP_RETINANET,
    MANPP_VIT,
    RESNET,
    RETINANET,
    STAGES,
    VIT,
    number_in,
)

Settings = dict[str, object]


def trained(epochs: int, batch_size: int, **optim: object) -> Settings:
    """Return the settings of a training."""
    return {
        "epochs": epochs,
        "batch_size": batch_size,
        **{f"optim.{key}": value for key, value in optim.items()},
    }


def trained_with_sgd(epochs: int, batch_size: int, **optim: object) -> Settings:
    return trained(epochs, batch_size, name="sgd", momentum=0.9, clip_norm=None, **optim)


def trained_as_resnet(epochs: int, data: str) -> Settings:
    return trained_with_sgd(
        epochs,
        128 if data == "stl10" else 1024,
        lr=0.1 if data == "stl10" else 0.8,
        nesterov=True,
        weight_decay=1e-4,
        schedule="cosine_by_epoch",
        warmup_epochs=10,
        warmup_lr=0.01,
    )


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
CIFAR10 = ([v / 255 for v in (125.3, 123.0, 113.9)], [v / 255 for v in (63.0, 62.1, 66.7)])
FORMS: Mapping[str, Any] = {
    "cifar10": (*(pytest.approx(v, abs=1e-6) for v in CIFAR10), 4, "reflect", True),
    "stl10": ([0.5], [0.5], 4, "zeros", True),
    "svhn": ([0.5], [0.5], 2, "zeros", False),
}
"""Mean, standard deviation, padding and flips in the code of the quoted papers."""


def images(name: str) -> Settings:
    """Return the data of a preset of residual networks, and how its images are prepared."""
    data = next((data for data in ("stl10", "svhn") if data in name), "cifar10")
    keys = [f"data.{key}" for key in ("mean", "std", "pad", "pad_mode", "flip")]
    return {"@data": data, **dict(zip(keys, FORMS[data], strict=True))}


def of_vit(name: str) -> Settings:
    plain = {"data.mean": [0.5], "data.std": [0.5], "data.pad": 0, "data.flip": False}
    steps = {"schedule": "step", "milestones": [80, 120], "gamma": 0.1, "warmup_epochs": 0}
    optim = trained_with_sgd(160, 128, lr=8e-4, nesterov=False, weight_decay=5e-5, **steps)
    return {"@data": name.split("_")[3], **plain, **optim}


def of_resnet(name: str) -> Settings:
    method, model, *_ = name.split("_")
    k, found = number_in(name), images(name)
    weights = WEIGHTS.get(name.rpartition("_")[0])
    cuts = f"K{k}" + ("_balanced" if name in BALANCED else "")
    cuts += "_stl10" if name == "infopro_resnet110_stl10_balanced_k3" else ""
    local: Settings = {"@local": "dgl" if method == "dgl" else "infopro", "local.cuts": cuts}
    local |= {"local.weights": weights and weights[k]}
    epochs = 400 if method == "ppll" else 160
    return {"@model": model, **local, **found, **trained_as_resnet(epochs, str(found["@data"]))}


def of_auglocal(name: str) -> Settings:
    _, model, depth = name.split("_")
    d = int(depth[1:])
    local = {"@local": "auglocal", "local.cuts": f"auglocal_d{d}", "local.depth": d}
    local |= {"local.tau": 0.5}
    return {"@model": model, **local, **images(name), **trained_as_resnet(400, "cifar10")}


def of_manpp(name: str) -> Settings:
    found = images(name)
    method = {"@model": name.split("_")[1], "@local": "manpp", "local.momentum": 0.995}
    return {**method, **found, **trained_as_resnet(400, str(found["@data"]))}


def of_manpp_vit(name: str) -> Settings:
    size = {"tiny": 192, "small": 384, "base": 768}[name.split("_")[2]]
    model = {"model.dim": size, "model.heads": size // 64}
    optim = trained(90, 1024, name="adamw", lr=1e-3)
    return {"@data": "imagenet", "@local": "manpp", **model, **optim}


def of_edsr(name: str) -> Settings:
    """All presets train as the baseline does. Those with `fba_` only add modules."""
    bank = name.startswith("fba")
    steps = {"schedule": "step", "milestones": [200], "gamma": 0.5, "warmup_epochs": 0}
    optim = {"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0}
    return {
        "@model": "edsr",
        "@data": "div2k",
        "data.scale": int(name[-1]),
        "data.patch": 48,
        "data.flip": True,
        "data.patches_per_epoch": 16000,  # a thousand batches
        "fba.enabled": bank,
        "fba.features": "first" if bank else None,
        **trained(300, 16, **optim, **steps),
    }


def trained_detector() -> Settings:
    return trained_with_sgd(12, 16, lr=0.01, weight_decay=1e-4, milestones=[8, 11])


def of_retinanet(name: str) -> Settings:
    model = {"@model": "retinanet", "model.depth": 50, "model.width": 256}
    data = {"@data": name.split("_")[-1], "fba.enabled": name.startswith("fba")}
    return {**model, **data, **trained_detector()}


def of_manpp_retinanet(name: str) -> Settings:
    model = {"@model": "retinanet", "model.depth": number_in(name, "retinanet")}
    method = {"@local": "manpp", "local.detection_head": "level"}
    return {**model, **method, "@data": "coco", "data.short_side": 600, **trained_detector()}


FAMILIES = [
    (VIT, of_vit),
    (RESNET, of_resnet),
    (AUGLOCAL, of_auglocal),
    (MANPP, of_manpp),
    (MANPP_VIT, of_manpp_vit),
    (EDSR, of_edsr),
    (RETINANET, of_retinanet),
    (MANPP_RETINANET, of_manpp_retinanet),
]
EXPECTED = {name: of(name) for names, of in FAMILIES for name in names}
"""The settings of each preset by key. A key with @ is the option chosen in a group."""


def value_at(config: Any, key: str) -> object:
    """Return a value of a configuration; None if the key does not exist."""
    for part in key.split("."):
        config = config.get(part) if config is not None else None
    return config


def test_every_preset_has_a_test() -> None:
    assert EXPECTED.keys() == STAGES.keys() == FILES.keys()


WEIGHTED = "infopro_resnet110_k4"


# Presets of ResNet-110 have the same keys as those of ResNet-32, and some have `local.weights` too.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * ("resnet110" in n and n != WEIGHTED))
        for n in EXPECTED
    ],
)
def test_a_preset_has_the_settings_of_its_paper(name: str) -> None:
    """The program accepts it, and the preset's second line names the paper."""
    config, choices = compose_config([f"experiment={name}"])
    optim = settings.parse(config).optim.model_dump()
    for group in ("model", "data", "local", "schedule"):
        arguments = {k: v for k, v in config[group].items() if k not in ("modules", "cuts")}
        make(group, arguments if group == "local" else config[group])
    read = {"optim": optim, **{f"@{group}": choice for group, choice in choices.items()}}
    found = {key: value_at({**config, **read}, key) for key in EXPECTED[name]}
    assert found == EXPECTED[name]
    assert choices["schedule"] == ("ppll" if sum(STAGES[name]) > 1 else "bp")
    package, comment = FILES[name].read_text().splitlines()[:2]
    assert package == "# @package _global_"
    assert re.match(r"# .*arXiv \d{4}\.\d{5}", comment)


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
