"""The head for the levels of a map, compared with layers, anchors and a loss written here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.level_head import LevelHead, with_levels
from ppll_cli.tasks import detection as d
from ppll_cli.tasks.pyramid import HeadStyle, PyramidHead, split_prediction

HEIGHT, WIDTH, CLASSES, ANCHOR = 64, 96, 3, 16
TASK = d.Detection(("a", "b", "c"), boxes=4, height=HEIGHT, width=WIDTH, anchor=ANCHOR)
STYLE = HeadStyle(6, CLASSES, ANCHOR)
LEVEL = with_levels(TASK, STYLE)


def map_of(stride: int, channels: int = 4) -> Tensor:
    torch.manual_seed(stride)
    shape = (2, channels, HEIGHT // stride, WIDTH // stride)
    return torch.randn(shape, requires_grad=True)


def head_of(stride: int, channels: int = 4) -> LevelHead:
    torch.manual_seed(0)
    made = LEVEL.smallest_head((channels, HEIGHT // stride, WIDTH // stride))
    assert isinstance(made, LevelHead)
    for parameter in made.parameters():  # otherwise the initial deltas are almost zero
        nn.init.normal_(parameter, std=0.2)
    return made


def typed_anew(head: LevelHead, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Return anchors [A, 4], deltas [B, A, 4], logits [B, A, C], and the strides of the levels."""
    weights = head.state_dict()

    def convolved(name: str, y: Tensor, **how: int) -> Tensor:
        return F.conv2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], **how)

    stride = HEIGHT // x.shape[2]
    if stride == 4:
        x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        stride = 8
    levels, strides = [F.relu(convolved("project", x))], [stride]
    for number in range(2 if stride == 32 else 0):
        coarser = convolved(f"coarser.{number}", F.relu(levels[-1]), stride=2, padding=1)
        levels.append(coarser)
        strides.append(2 * strides[-1])
    found: dict[str, list[Tensor]] = {"classification_head": [], "regression_head": []}
    for branch, last in (("classification_head", "cls_logits"), ("regression_head", "bbox_reg")):
        for level in levels:
            y = level
            for number in (0, 1):
                y = F.relu(convolved(f"head.{branch}.conv.{number}.0", y, padding=1))
            y = convolved(f"head.{branch}.{last}", y, padding=1)
            columns = y.shape[1] // 9
            y = y.reshape(len(y), 9, columns, *y.shape[2:]).permute(0, 3, 4, 1, 2)
            found[branch].append(y.reshape(len(y), -1, columns))
    anchors = []
    for step, level in zip(strides, levels, strict=True):
        steps = HEIGHT // level.shape[2], WIDTH // level.shape[3]
        for row in range(level.shape[2]):
            for column in range(level.shape[3]):
                for shape in (0.5, 1.0, 2.0):  # height times width
                    for third in range(3):
                        side = int(ANCHOR * step / 8 * 2 ** (third / 3))
                        half = side / math.sqrt(shape) / 2, side * math.sqrt(shape) / 2
                        across, down = (round(number) for number in half)
                        centre = column * steps[1], row * steps[0]
                        anchors.append(
                            [
                                centre[0] - across,
                                centre[1] - down,
                                centre[0] + across,
                                centre[1] + down,
                            ]
                        )
    deltas, logits = (torch.cat(found[name], dim=1) for name in reversed(found))
    return torch.tensor(anchors, dtype=torch.float32), deltas, logits, strides


def loss_typed_anew(
    anchors: Tensor, deltas: Tensor, logits: Tensor, boxes: list[list[float]], labels: list[int]
) -> Tensor:
    """Return the loss of one picture.

    An anchor that overlaps no box by half belongs to no box, even if a box has no other anchor.
    """
    total, positives = torch.zeros(()), 0
    for anchor, delta, logit in zip(anchors.tolist(), deltas, logits, strict=True):
        overlaps = [_overlap(anchor, box) for box in boxes] or [0.0]
        best = max(range(len(overlaps)), key=overlaps.__getitem__)
        if 0.4 <= overlaps[best] < 0.5:
            continue
        positive = overlaps[best] >= 0.5
        positives += positive
        for number in range(CLASSES):
            there = positive and labels[best] == number
            score = logit[number].sigmoid()
            right, weight = (score, 0.25) if there else (1 - score, 0.75)
            total = total - weight * (1 - right) ** 2 * right.log()
        if positive:
            left, top, end, bottom = boxes[best]
            wide, high = anchor[2] - anchor[0], anchor[3] - anchor[1]
            wanted = [
                ((left + end) - (anchor[0] + anchor[2])) / 2 / wide,
                ((top + bottom) - (anchor[1] + anchor[3])) / 2 / high,
                math.log((end - left) / wide),
                math.log((bottom - top) / high),
            ]
            total = total + (delta - torch.tensor(wanted)).abs().sum()
    return total / max(1, positives)


def _overlap(one: list[float], other: list[float]) -> float:
    sides = [min(one[n + 2], other[n + 2]) - max(one[n], other[n]) for n in (0, 1)]
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


BOXES = [[8.0, 8.0, 24.0, 26.0], [40.0, 10.0, 80.0, 50.0], [0.0, 0.0, 90.0, 60.0]]
LABELS = [2, 0, 1]


def batch(pictures: list[int]) -> dict[str, Tensor]:
    """Return targets. Each number says how many of the boxes a picture has."""
    room = [*BOXES, [0.0, 0.0, 1.0, 1.0]]
    return {
        d.BOXES: torch.tensor([room] * len(pictures)),
        d.LABELS: torch.tensor([[*LABELS, 0]] * len(pictures)),
        d.IGNORED: torch.zeros(len(pictures), 4, dtype=torch.bool),
        d.COUNT: torch.tensor(pictures),
        d.FRAME: torch.tensor([[float(HEIGHT), float(WIDTH), 1.0, 1.0]] * len(pictures)),
    }


@pytest.mark.parametrize(
    ("stride", "strides"), [(4, [8]), (8, [8]), (16, [16]), (32, [32, 64, 128])]
)
def test_layers_anchors_and_loss(stride: int, strides: list[int]) -> None:
    head, x = head_of(stride), map_of(stride)
    prediction = head(x)
    anchors, deltas, logits, found = typed_anew(head, x)
    assert found == strides
    levels, mine, my_deltas, my_logits = split_prediction(prediction)
    assert [8 * 2 ** int(level) for level in sorted(set(levels[0].tolist()))] == strides
    assert torch.equal(mine, anchors.expand(2, -1, -1))
    torch.testing.assert_close(my_deltas, deltas)
    torch.testing.assert_close(my_logits, logits)
    loss = LEVEL.loss(prediction, batch([3, 0]))
    one = loss_typed_anew(anchors, deltas[0], logits[0], BOXES, LABELS)
    none = loss_typed_anew(anchors, deltas[1], logits[1], [], [])
    torch.testing.assert_close(loss, (one + none) / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in head.parameters())
    assert x.grad is not None
    assert x.grad.any()


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_anchors_are_those_of_the_whole_pyramid(stride: int) -> None:
    whole = PyramidHead({8: 4, 16: 4, 32: 4}, STYLE)
    every = whole(map_of(32), map_of(16), map_of(8))[:, :, :5]
    mine = head_of(stride)(map_of(stride))[:, :, :5]
    first = {8: 0, 16: 1, 32: 2}[stride]
    kept = (every[0, :, 0] >= first) & ((every[0, :, 0] == first) | torch.tensor(stride == 32))
    assert torch.equal(mine, every[:, kept])


def test_a_box_that_fits_no_level_trains_nothing() -> None:
    """A large box overlaps no anchor of P3 by half. It counts as background, and gets no anchor."""
    prediction = head_of(8)(map_of(8)).detach()
    values = batch([1, 1])
    values[d.BOXES][:, 0] = torch.tensor(BOXES[2])
    nothing = batch([0, 0])
    between = LEVEL.loss(prediction, values)
    torch.testing.assert_close(between, LEVEL.loss(prediction, nothing))
    assert not torch.isclose(TASK.loss(prediction, values), TASK.loss(prediction, nothing))


def test_convolutions_are_initialized_as_in_the_authors_code() -> None:
    head = LEVEL.smallest_head((64, 2, 3))
    convolutions = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 + 2 * (2 + 1)
    for layer in convolutions:
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.15)
        assert layer.bias is not None
        rare = layer is head.head.classification_head.cls_logits
        expected = torch.full_like(layer.bias, -math.log(0.99 / 0.01) if rare else 0)
        torch.testing.assert_close(layer.bias, expected)


def test_norms_are_those_of_the_models_head() -> None:
    with_norms = replace(LEVEL, style=HeadStyle(64, CLASSES, ANCHOR, groups=32)).smallest_head(
        (4, 8, 12)
    )
    norms = [layer for layer in with_norms.modules() if isinstance(layer, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [32] * 4
    assert not any(isinstance(layer, nn.GroupNorm) for layer in head_of(8).modules())


def test_detections_come_from_its_levels() -> None:
    head = head_of(16)
    prediction = head(map_of(16)).detach()
    found = LEVEL.detections(prediction, batch([0, 0])[d.FRAME])
    assert all(len(each.boxes) for each in found)


def test_a_map_that_is_too_coarse_is_refused() -> None:
    message = r"^local.detection_head=level: has levels for maps of stride 8, 16 and 32, not 64"
    with pytest.raises(ConfigError, match=message):
        replace(LEVEL, width=64).smallest_head((4, 1, 1))


@dataclass(frozen=True, kw_only=True)
class Weighted(d.Detection):
    """A user's own detection task."""

    weight: float = 1.0

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return self.weight * super().loss(prediction, values)


def test_a_users_own_task_keeps_its_class_and_values() -> None:
    own = Weighted(**{**vars(TASK), "weight": 3.0})
    made = with_levels(own, STYLE)
    assert isinstance(made, Weighted)
    assert isinstance(made.smallest_head((4, 8, 12)), LevelHead)
    head, x = head_of(8), map_of(8)
    boxes = torch.tensor([[[8.0, 8.0, 24.0, 24.0]] * 4] * 2)
    values = {"boxes": boxes, "labels": torch.ones(2, 4, dtype=torch.int64)}
    values |= {"ignored": torch.zeros(2, 4, dtype=torch.bool), "count": torch.tensor([1, 1])}
    torch.testing.assert_close(made.loss(head(x), values), 3 * LEVEL.loss(head(x), values))
