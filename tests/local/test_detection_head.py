"""`local.detection_head` selects the levels on which each module of a detector is trained."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import empty
from ppll_cli.local.auglocal import AugLocal
from ppll_cli.local.detection_head import DetectionHead
from ppll_cli.local.fba import FBA
from ppll_cli.local.greedy import Greedy
from ppll_cli.local.level_head import LevelHead
from ppll_cli.local.man import MAN, MANPlus, Mixture
from ppll_cli.local.method import LocalMethod, Site
from ppll_cli.local.pyramid_bank import BankedPyramid
from ppll_cli.models.retinanet import RetinaNet
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.detection import Detection
from ppll_cli.tasks.pyramid import PyramidHead, SmallestHead
from tests.local.conftest import site_over
from tests.other_task import OtherTask

TASK = Detection(("a", "b"), boxes=2, height=64, width=64, anchor=16)
IMAGES = ImageSpec(3, 64, 64)
BY_STAGE = ("layer2.0", "layer3.0", "layer4.0")  # modules end in maps of stride 4, 8 and 16
INSIDE = ("layer2.1", "layer3.1", "layer4.1")  # 8, 16 and 32
NEVER = FeatureBank(enabled=False)

LEVELS = {8: ["P3"], 16: ["P4"], 32: ["P5", "P6", "P7"]}


@pytest.fixture(scope="module")
def model() -> Site:
    with torch.device("meta"):
        return site_over(RetinaNet(width=8).units(IMAGES, TASK), IMAGES, TASK)


def sites(model: Site, cuts: tuple[str, ...]) -> list[Site]:
    """Return the ends of all modules except the last."""
    names = [unit.name for unit in model.units]
    starts = [0, *map(names.index, cuts), len(names)]
    modules = tuple(range(a, b) for a, b in pairwise(starts))
    return [replace(model, module=m, modules=modules) for m in range(len(cuts))]


def levels_of(method: LocalMethod, site: Site) -> list[str]:
    """Return the levels to which the anchors of a module's prediction belong."""
    with torch.device("meta"):
        criterion = method.criterion(site)
    (head,) = (each for each in criterion.modules() if isinstance(each, LevelHead))
    assert head.head.classification_head.conv[0][0].in_channels == 8  # the width of the model
    return [f"P{3 + level}" for level in head.anchors.levels]


ALL = ["greedy", "fba", "auglocal", "man", "manpp"]


def method_of(name: str, head: DetectionHead | None) -> LocalMethod:
    made: dict[str, LocalMethod] = {
        "greedy": Greedy(detection_head=head),
        "fba": FBA(bank=NEVER, detection_head=head),
        "auglocal": AugLocal(detection_head=head),
        "man": MAN(detection_head=head),
        "manpp": MANPlus(detection_head=head),
    }
    return made[name]


@pytest.mark.parametrize(
    ("name", "cuts", "strides"),
    [
        ("greedy", BY_STAGE, [8, 8, 16]),
        ("greedy", INSIDE, [8, 16, 32]),
        ("fba", BY_STAGE, [8, 8, 16]),
        ("fba", INSIDE, [8, 16, 32]),
        ("auglocal", BY_STAGE, [16, 32, 32]),
        ("manpp", BY_STAGE, [8, 16, 32]),  # as in the authors' code
        ("man", INSIDE, [8, 16, 32]),
    ],
)
def test_level_trains_the_levels_for_the_stride_of_each_map(
    model: Site, name: str, cuts: tuple[str, ...], strides: list[int]
) -> None:
    method = method_of(name, "level")
    found = [levels_of(method, site) for site in sites(model, cuts)]
    assert found == [LEVELS[stride] for stride in strides]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("greedy", SmallestHead),
        ("fba", BankedPyramid),
        ("auglocal", PyramidHead),
        ("man", PyramidHead),
    ],
)
def test_pyramid_trains_all_levels(model: Site, name: str, kind: type[nn.Module]) -> None:
    for site in sites(model, BY_STAGE):
        with torch.device("meta"):
            criterion = method_of(name, "pyramid").criterion(site)
        assert any(isinstance(each, kind) for each in criterion.modules())
        assert not any(isinstance(each, LevelHead) for each in criterion.modules())


@pytest.mark.parametrize("name", ["greedy", "fba", "auglocal"])
def test_an_older_record_means_pyramids(model: Site, name: str) -> None:
    """An older record lacks the key `detection_head`."""
    target = type(method_of(name, None))
    options = {"bank": {"enabled": False}} if name == "fba" else {}
    before = make("local", {"_target_": f"{target.__module__}.{target.__name__}", **options})
    for site in sites(model, BY_STAGE):
        torch.manual_seed(0)
        old = before.criterion(site).state_dict()
        torch.manual_seed(0)
        named = method_of(name, "pyramid").criterion(site).state_dict()
        assert old.keys() == named.keys()
        assert all(map(torch.equal, old.values(), named.values()))


@pytest.mark.parametrize("name", ["man", "manpp"])
def test_momentum_networks_have_level_heads_by_default(model: Site, name: str) -> None:
    """Heads read two copies of the next stage's first unit: one is trained, one follows it."""
    for module, site in enumerate(sites(model, BY_STAGE)):
        criterion = method_of(name, None).criterion(site)
        assert isinstance(criterion.head, Mixture)
        assert criterion.watches is not None
        assert site.units[criterion.watches.unit].name == BY_STAGE[module]
        specs = {**TASK.targets, site.feature: site.spec}
        values = {name: empty(spec) for name, spec in specs.items()}
        loss, prediction = criterion.to("meta")(values)
        assert loss.shape == ()
        assert prediction.shape[1] == 9 * [64, 16, 4 + 1 + 1][module]


def test_detection_head_is_refused_for_other_tasks(model: Site) -> None:
    for chosen in ("level", "pyramid"):
        message = rf"^local\.detection_head={chosen}: is for detection; choose a data set with box"
        for name in ALL:
            for task in (Classification(3), OtherTask()):
                units, features = model.units, model.features
                site = Site(0, (range(3), range(3, len(units))), units, features, IMAGES, task)
                with pytest.raises(ConfigError, match=message):
                    method_of(name, chosen).criterion(site)


@pytest.mark.parametrize("loss", ["infopro", "dgl", "ce"])
def test_losses_for_classification_are_refused(model: Site, loss: Any) -> None:
    with pytest.raises(ConfigError, match=f"^local.loss={loss}: is for classification: a detec"):
        MAN(loss=loss).criterion(sites(model, BY_STAGE)[0])


def test_a_head_that_is_no_pyramid_head_is_refused(model: Site) -> None:
    units, features = model.units, model.features
    units = [*units[:-1], Unit("head", nn.Identity, ("c5",), ("prediction",))]
    site = Site(0, (range(3), range(3, len(units))), units, features, IMAGES, TASK)
    message = r"^local\.detection_head=level: the model's head, Identity, .*detection_head=pyramid"
    with pytest.raises(ConfigError, match=message):
        Greedy(detection_head="level").criterion(site)
    Greedy(detection_head="pyramid").criterion(site)
