"""Detection: the loss, measurements, and heads for local learning."""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import Matcher, encode_boxes
from torchvision.ops import box_iou

from ppll_cli.config.commands import pip_install
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import empty
from ppll_cli.tasks import detection as d
from ppll_cli.tasks.boxes import BACKGROUND, matched
from ppll_cli.tasks.classification import Classification
from ppll_cli.tasks.precision import COLUMNS
from ppll_cli.tasks.pyramid import HeadStyle, PyramidHead, SmallestHead, split_prediction
from tests.no_waiting import NoWaiting
from tests.tasks import one_picture

TASK = d.Detection(("a", "b", "c"), boxes=4, height=64, width=96, anchor=16)


def batch(boxes: list[list[float]], labels: list[int], **changes: Tensor) -> dict[str, Tensor]:
    """Return the targets of one picture. The original is twice as wide and high."""
    padding = TASK.boxes - len(boxes)
    return {
        d.BOXES: torch.tensor([*boxes, *[[0.0, 0.0, 1.0, 1.0]] * padding])[None],
        d.LABELS: torch.tensor([labels + [0] * padding]),
        d.IGNORED: torch.zeros(1, TASK.boxes, dtype=torch.bool),
        d.COUNT: torch.tensor([len(boxes)]),
        d.NUMBER: torch.tensor([7]),
        d.FRAME: torch.tensor([[60.0, 90.0, 0.5, 0.5]]),
        **changes,
    }


def head_of(*strides: int, channels: int = 4) -> PyramidHead:
    torch.manual_seed(0)
    style = HeadStyle(8, len(TASK.classes), TASK.anchor)
    return PyramidHead(dict.fromkeys(strides, channels), style)


def maps_of(*strides: int, channels: int = 4) -> list[Tensor]:
    """Return maps of these strides, which begin with the coarsest."""
    torch.manual_seed(1)
    sizes = [(TASK.height // stride, TASK.width // stride) for stride in strides]
    return [torch.randn(1, channels, *size, requires_grad=True) for size in sizes]


def right_answer(boxes: list[list[float]], labels: list[int]) -> Tensor:
    """Return a prediction in which only the best anchor of each box has a high score."""
    prediction: Tensor = head_of(8, 16, 32)(*maps_of(32, 16, 8)).detach()
    anchors = split_prediction(prediction[0])[1]
    prediction[:, :, 5:9], prediction[:, :, 9:] = 0, -20
    for box, label in zip(torch.tensor(boxes), labels, strict=True):
        best = int(box_iou(box[None], anchors)[0].argmax())
        chosen = anchors[best : best + 1]
        prediction[0, best, 5:9] = encode_boxes(box[None], chosen, torch.ones(4))[0]
        prediction[0, best, 9 + label] = 20
    return prediction


BOXES = [[8.0, 8.0, 24.0, 24.0], [40.0, 10.0, 80.0, 50.0]]


def test_a_right_prediction_has_the_right_boxes_and_scores() -> None:
    prediction, values = right_answer(BOXES, [2, 0]), batch(BOXES, [2, 0])
    (found,) = TASK.detections(prediction, values[d.FRAME])
    assert sorted(found.labels.tolist()) == [0, 2]
    order = found.labels.argsort(descending=True)
    torch.testing.assert_close(found.boxes[order], 2 * torch.tensor(BOXES))
    rows = TASK.measure(prediction, values, training=False)
    assert rows.shape == (1 + 4, COLUMNS)
    assert rows[:, 1].tolist() == [7.0] * 5
    score = TASK.score(rows)
    assert list(score) == ["ap", "ap50", "ap75", "voc_ap50", "voc07_ap50"]
    assert list(score.values()) == pytest.approx([1] * 5)


def test_boxes_are_cut_at_the_border_of_the_picture() -> None:
    prediction = right_answer([[60.0, 40.0, 95.0, 63.0]], [1])
    (found,) = TASK.detections(prediction, torch.tensor([[60.0, 90.0, 1.0, 1.0]]))
    assert found.boxes[0, 2:].tolist() == [90, 60]


def test_a_batch_without_boxes_trains_the_scores_only() -> None:
    values = batch([], [])
    head, maps = head_of(8, 16, 32), maps_of(32, 16, 8)
    loss = TASK.loss(head(*maps), values)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss > 0
    logits = head.head.classification_head.cls_logits
    assert logits.weight.grad.any()
    offsets = head.head.regression_head.bbox_reg
    assert not offsets.weight.grad.any()
    assert torch.isfinite(logits.weight.grad).all()
    rows = TASK.measure(head(*maps).detach(), values, training=False)
    assert len(rows) == 1
    assert math.isnan(TASK.score(rows)["ap"])
    assert TASK.score(torch.empty(0, COLUMNS)) == {}


def test_ignored_boxes_and_padding_do_not_change_the_loss() -> None:
    prediction = right_answer(BOXES, [2, 0])
    ignored = torch.tensor([[False, True, False, False]])
    one = TASK.loss(prediction, batch(BOXES, [2, 0], ignored=ignored))
    assert torch.equal(one, TASK.loss(prediction, batch(BOXES[:1], [2])))
    assert not torch.equal(one, TASK.loss(prediction, batch(BOXES, [2, 0])))
    other = batch(BOXES[:1], [2])
    other[d.BOXES][0, 1:] = torch.tensor([10.0, 10.0, 50.0, 50.0])
    assert torch.equal(one, TASK.loss(prediction, other))


def test_the_loss_of_a_batch_is_the_mean_of_its_pictures() -> None:
    """So micro-batches can be weighted by their numbers of samples."""
    prediction = right_answer(BOXES, [2, 0])
    both = [batch(BOXES, [2, 0]), batch(BOXES[:1], [1])]
    together = {name: torch.cat([values[name] for values in both]) for name in both[0]}
    single = torch.stack([TASK.loss(prediction, values) for values in both])
    mean = TASK.loss(prediction.expand(2, -1, -1), together)
    torch.testing.assert_close(mean, single.mean())


def random_case(seed: int, classes: int) -> tuple[d.Detection, Tensor, dict[str, Tensor]]:
    """Return a prediction for up to eight pictures.

    Each has up to nine boxes, some of them ignored.
    """
    torch.manual_seed(seed)
    batch, boxes = (int(torch.randint(1, most, ())) for most in (9, 10))
    height, width = (32 * int(torch.randint(1, 8, ())) for _ in range(2))
    names = tuple(map(str, range(classes)))
    task = d.Detection(names, boxes=boxes, height=height, width=width, anchor=16)
    head = SmallestHead(4, 8, classes, 16)
    torch.nn.init.normal_(head.predict.weight, std=0.5)
    prediction = head(torch.randn(batch, 4, height // 8, width // 8)).detach()
    size = torch.tensor([width, height])
    corner = torch.rand(batch, boxes, 2) * size * 0.8
    behind = corner + 2 + torch.rand(batch, boxes, 2) * size * 0.6
    count = torch.randint(boxes + 1, (batch,))
    padding = torch.arange(boxes) >= count[:, None]
    nothing = torch.tensor([0.0, 0.0, 1.0, 1.0])
    values = {
        d.BOXES: torch.cat((corner, behind), dim=2).where(~padding[..., None], nothing),
        d.LABELS: torch.randint(classes, (batch, boxes)),
        d.IGNORED: torch.rand(batch, boxes) < 0.2,
        d.COUNT: count,
    }
    return task, prediction.bfloat16() if seed % 4 == 3 else prediction, values


def with_gradient(
    loss: Callable[[Tensor, dict[str, Tensor]], Tensor],
    prediction: Tensor,
    values: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    prediction = prediction.clone().requires_grad_()
    made = loss(prediction, values)
    made.backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    return made.detach(), prediction.grad


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("largest", [1, 2**16, 2**24])
@pytest.mark.parametrize("classes", [1, 3, 20, pytest.param(91, marks=pytest.mark.slow)])
def test_the_loss_of_several_pictures_has_the_bits_of_single_pictures(
    monkeypatch: pytest.MonkeyPatch, classes: int, largest: int
) -> None:
    """Loss and gradients are equal for any number of threads. Some boxes are padding or ignored."""
    monkeypatch.setattr(d, "LARGEST_TABLE", largest)
    for seed in (2, 3):  # 3 has a prediction of bfloat16
        task, prediction, values = random_case(seed, classes)
        for count in (1, 3):
            torch.set_num_threads(count)
            found = with_gradient(task.loss, prediction, values)
            alone = partial(one_picture.loss, task)
            expected = with_gradient(alone, prediction, values)
            assert all(map(torch.equal, found, expected))


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that torch runs."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_another_picture_adds_only_a_few_operations() -> None:
    """On CUDA each operation is a kernel launch, which takes the host longer than the device."""
    prediction, values = right_answer(BOXES, [2, 0]), batch(BOXES, [2, 0])
    counts = []
    for pictures in (1, 9):
        more = {name: torch.cat([value] * pictures) for name, value in values.items()}
        with Operations() as operations:  # type: ignore[no-untyped-call]
            with_gradient(TASK.loss, prediction.repeat(pictures, 1, 1), more)
        counts.append(operations.count)
    assert counts[1] - counts[0] <= 8 * 4


def test_tables_of_overlaps_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    def noted(boxes: Tensor, *others: Any, **options: Any) -> Tensor:
        together.append(len(boxes))
        return matched(boxes, *others, **options)

    monkeypatch.setattr(d, "matched", noted)
    prediction, values = right_answer(BOXES, [2, 0]).repeat(5, 1, 1), batch(BOXES, [2, 0])
    values = {name: torch.cat([value] * 5) for name, value in values.items()}
    monkeypatch.setattr(d, "LARGEST_TABLE", 2 * prediction.shape[1] * TASK.boxes)
    TASK.loss(prediction, values)
    assert together == [2, 2, 1]


def test_the_loss_never_waits_for_the_device() -> None:
    values = {name: empty(spec) for name, spec in TASK.targets.items()}
    prediction = head_of(8, 16, 32)(*maps_of(32, 16, 8)).detach().to("meta")
    with NoWaiting():
        with_gradient(TASK.loss, prediction, values)


def test_training_batches_are_not_measured() -> None:
    rows = TASK.measure(right_answer(BOXES, [2, 0]), batch(BOXES, [2, 0]), training=True)
    assert rows.shape == (0, COLUMNS)


def test_the_loss_runs_on_the_meta_device() -> None:
    """Planning runs the loss on the meta device."""
    values = {name: empty(spec) for name, spec in TASK.targets.items()}
    prediction = head_of(8, 16, 32)(*maps_of(32, 16, 8)).to("meta")
    assert TASK.loss(prediction, values).shape == ()


def test_anchors_are_matched_like_torchvisions() -> None:
    anchors = split_prediction(head_of(32)(*maps_of(32))[0])[1].detach()
    corner = torch.rand(6, 2) * 50
    boxes = torch.cat((corner, corner + 3 + torch.rand(6, 2) * 40), dim=1)
    wanted = torch.tensor([True, False, True, True, True, False])
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes[wanted], anchors))
    numbers = wanted.nonzero()[:, 0]
    expected = torch.where(theirs >= 0, numbers[theirs.clamp(min=0)], theirs)
    assert len(set(expected.tolist())) > 4
    assert torch.equal(matched(boxes, wanted, anchors), expected)
    none = matched(boxes, torch.zeros(6, dtype=torch.bool), anchors)
    assert set(none.tolist()) == {BACKGROUND}


@pytest.mark.parametrize("strides", [(8,), (16,), (32,), (8, 16), (8, 32), (16, 32), (8, 16, 32)])
def test_a_pyramid_can_be_made_of_any_maps(strides: tuple[int, ...]) -> None:
    """The anchors are always the same, and all parameters are trained."""
    head, maps = head_of(*strides), maps_of(*sorted(strides, reverse=True))
    prediction = head(*maps)
    whole = head_of(8, 16, 32)(*maps_of(32, 16, 8))
    assert torch.equal(prediction[:, :, :5], whole[:, :, :5])
    TASK.loss(prediction, batch(BOXES, [2, 0])).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert all(x.grad is not None and x.grad.any() for x in maps)


@pytest.mark.parametrize("stride", [1, 4, 8, 16, 32])
def test_the_smallest_head_reads_one_map(stride: int) -> None:
    head = TASK.smallest_head((4, TASK.height // stride, TASK.width // stride))
    (x,) = maps_of(stride)
    prediction = head(x)
    assert prediction.shape == head_of(8, 16, 32)(*maps_of(32, 16, 8)).shape
    assert float(prediction[:, :, 9:].detach().sigmoid().mean()) == pytest.approx(0.01, rel=0.2)
    TASK.loss(prediction, batch(BOXES, [2, 0])).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.any()
    assert isinstance(head, SmallestHead)


def test_wrong_shapes_and_other_tasks_are_refused() -> None:
    for shape in ((16,), (8, 5, 7), (8, 64 // 3, 32)):
        with pytest.raises(ConfigError, match=r"local=greedy: finds boxes in maps .* power of 2"):
            TASK.smallest_head(shape)
    with pytest.raises(ConfigError, match="model=retinanet: is for detection"):
        d.detection_of(Classification(3), "retinanet")


def test_detection_is_refused_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing library was once found only at the first evaluation, after an epoch."""
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError) as caught:
        d.Detection(("a",), boxes=1, height=32, width=32, anchor=8)
    problem = "object detection is measured by pycocotools, which is not installed"
    assert str(caught.value) == f"data=detection: {problem}; {pip_install('pycocotools')}"
