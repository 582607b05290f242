"""The presets of conf/experiment by family, and small versions of them."""

import re
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

from ppll_cli.config.options import conf_dir
from ppll_cli.prepare.preparation import Prepared
from tests import conftest
from tests.data.picture_files import write_div2k
from tests.data.scene_files import write_coco, write_voc

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


def number_in(name: str, before: str = "k") -> int:
    """Return the number in the name of a preset, by default the k of residual networks."""
    return int(re.findall(rf"{before}(\d+)", name)[0])


# Number of modules on each stage.
STAGES = {
    **{name: [5, 7] if name.endswith("s2") else [2, 3, 3, 4] for name in VIT},
    "ppll_resnet32_k16s2": [9, 7],
    "ppll_resnet32_k16s4": [8, 3, 2, 3],
    "ppll_resnet32_k8s2": [4, 4],
    "ppll_resnet32_k4s2": [2, 2],
    # Stages have equally many units, and the first of InfoPro's sixteen modules are smaller.
    **{
        name: {2: [1, 1], 4: [2, 2], 8: [4, 4], 16: [9, 7]}[number_in(name)]
        for name in (*COMPARED, *INFOPRO)
    },
    **{name: {2: [1, 1], 3: [2, 1], 4: [3, 1]}[number_in(name)] for name in BALANCED},
    "auglocal_resnet32_d1": [9, 6],
    "auglocal_resnet32_d3": [9, 4],
    "auglocal_resnet32_d5": [9, 2],
    "auglocal_resnet110_d1": [28, 26],
    "auglocal_resnet110_d3": [28, 24],
    "auglocal_resnet110_d5": [28, 22],
    # In K8 and K32 the stem is an additional module. In K16 and K55 it is one of the modules.
    **{
        name: {8: [5, 4], 16: [9, 7], 32: [15, 18], 55: [28, 27]}[number_in(name)] for name in MANPP
    },
    **{name: [1, 1, 1, 1] for name in [*MANPP_VIT, *MANPP_RETINANET]},
    **{name: [2, 2] if name.startswith("fba") else [1] for name in [*EDSR, *RETINANET]},
}

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
    return conftest.prepared(*synthetic(name, batch_size), *overrides)


def modules(result: Prepared) -> list[list[str]]:
    return [[result.job.names[index] for index in units] for units in result.job.layout.modules]


def starts(result: Prepared) -> list[str]:
    """Return the first unit of each module except the first."""
    return [units[0] for units in modules(result)[1:]]


def modules_of_stages(result: Prepared) -> list[int]:
    return [len(result.job.layout.of(stage)) for stage in range(result.job.stages)]
