"""RetinaNet, compared with torchvision's."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection import RetinaNet as TorchRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ppll_cli.errors import ConfigError
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.resnet import FamilyDepth
from ppll_cli.models.retinanet import Norm, RetinaNet
from ppll_cli.models.torchvision_weights import from_torchvision
from ppll_cli.models.unit import ImageSpec
from ppll_cli.tasks import detection as d
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.pyramid import PyramidHead

CLASSES = tuple("abcde")
HEIGHT, WIDTH = 96, 160
TASK = d.Detection(CLASSES, boxes=3, height=HEIGHT, width=WIDTH, anchor=32)
IMAGE = ImageSpec(3, HEIGHT, WIDTH)


def theirs(depth: int, norm: Norm = "none") -> nn.Module:
    """Return torchvision's RetinaNet, which neither resizes nor normalises these images."""
    layer = partial(nn.GroupNorm, 32) if norm == "group" else None
    body = getattr(resnet, f"resnet{depth}")(weights=None)
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=extra)
    sizes = tuple(
        (size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3)))
        for size in (32, 64, 128, 256, 512)
    )
    model: nn.Module = TorchRetinaNet(
        backbone,
        len(CLASSES),
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        head=RetinaNetHead(256, 9, len(CLASSES), norm_layer=layer),
        min_size=HEIGHT,
        max_size=WIDTH,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        detections_per_img=100,
    )
    return model


@pytest.fixture
def values() -> dict[str, Tensor]:
    """Return the targets of two pictures. The second one has only one box."""
    boxes = torch.tensor(
        [
            [[10.0, 12.0, 40.0, 45.0], [100.0, 20.0, 150.0, 90.0], [3.0, 3.0, 8.0, 9.0]],
            [[60.0, 30.0, 120.0, 60.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]],
        ]
    )
    return {
        d.BOXES: boxes,
        d.LABELS: torch.tensor([[1, 4, 0], [2, 0, 0]]),
        d.IGNORED: torch.zeros(2, 3, dtype=torch.bool),
        d.COUNT: torch.tensor([3, 1]),
        d.NUMBER: torch.tensor([0, 1]),
        d.FRAME: torch.tensor([[HEIGHT, WIDTH, 1.0, 1.0]] * 2),
    }


@pytest.mark.parametrize(
    ("depth", "norm"), [(18, "group"), pytest.param(50, "none", marks=pytest.mark.slow)]
)
def test_the_model_equals_torchvisions(
    depth: FamilyDepth, norm: Norm, values: dict[str, Tensor]
) -> None:
    """With the same weights, outputs, losses and detections are equal."""
    other = theirs(depth, norm)
    with torch.no_grad():  # raises the scores, so that there are detections
        other.get_parameter("head.classification_head.cls_logits.bias").add_(4.0)
    model = PlainModel(RetinaNet(depth=depth, norm=norm).units(IMAGE, TASK))
    model.load_state_dict(from_torchvision(other.state_dict()))
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    other.eval(), model.eval()
    with torch.no_grad():
        prediction = model(images)
        wanted: list[dict[str, Any]] = other(list(images))
        head = other.head(list(other.backbone(images).values()))  # type: ignore[operator]
    torch.testing.assert_close(prediction[:, :, 5:9], head["bbox_regression"])
    torch.testing.assert_close(prediction[:, :, 9:], head["cls_logits"])
    for found, expected in zip(TASK.detections(prediction, values[d.FRAME]), wanted, strict=True):
        assert len(found.boxes) == 100
        torch.testing.assert_close(found.scores, expected["scores"])
        # The order of nearly equal scores depends on their last bits, so find each box's partner.
        one = torch.cat([found.boxes, 1000 * found.labels[:, None]], dim=1)
        other_one = torch.cat([expected["boxes"], 1000 * expected["labels"][:, None]], dim=1)
        partner = torch.cdist(other_one, one).argmin(dim=1)
        assert len({*partner.tolist()}) == 100
        torch.testing.assert_close(one[partner], other_one)
        torch.testing.assert_close(found.scores[partner], expected["scores"])
    targets = [
        {"boxes": boxes[:count], "labels": labels[:count]}
        for boxes, labels, count in zip(values[d.BOXES], values[d.LABELS], (3, 1), strict=True)
    ]
    other.train()
    for layer in other.modules():  # use running statistics, as our network does
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    losses = other(list(images), targets)
    total = losses["classification"] + losses["bbox_regression"]
    torch.testing.assert_close(TASK.loss(prediction, values), total.detach())


def test_impossible_options_and_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.depth=200: must be 18, 34, 50, 101 or 152"):
        RetinaNet(depth=200)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model.width=0: must be greater than or equal to 1"):
        RetinaNet(width=0)
    with pytest.raises(ConfigError, match=r"model.norm=batch: must be 'none' or 'group'"):
        RetinaNet(norm="batch")  # type: ignore[arg-type]
    for width in (32, 80):
        with pytest.raises(ConfigError, match=f"model.width={width}: cannot be divided into"):
            RetinaNet(width=width, norm="group")
    with pytest.raises(ConfigError, match="model=retinanet: is for detection"):
        RetinaNet().units(IMAGE, Classification(3))


def test_the_pyramid_reads_the_maps_c3_to_c5() -> None:
    units = RetinaNet(depth=18, width=64).units(IMAGE, TASK)
    ways = {unit.name: (unit.reads, unit.writes) for unit in units}
    assert ways["layer2.1"] == (("x",), ("c3",))
    assert ways["layer3.0"] == (("c3",), ("x",))
    assert ways["layer4.0"] == (("c4",), ("x",))
    assert ways["head"] == (("c5", "c4", "c3"), ("prediction",))


def test_heads_have_group_norms() -> None:
    """Heads that local learning makes from it have the same norms."""
    head = RetinaNet(width=64, norm="group").units(IMAGE, TASK)[-1]
    assert head.adapt is not None
    for made in (head.build(), head.adapt((256, 6, 10), (1,))):
        assert isinstance(made, PyramidHead)
        for each in (made, PyramidHead({16: 3}, made.style)):
            norms = [layer for layer in each.modules() if isinstance(layer, nn.GroupNorm)]
            assert [norm.num_groups for norm in norms] == [32] * 8
