"""Average precision of small cases, which can be counted by hand."""

import math

import pytest
import torch
from torch import Tensor

from ppll_cli.tasks.precision import FOUND, PICTURE, TRUE_BOX, average_precisions

CLASSES = ("cat", "dog")


def there(picture: int, label: int, box: list[float], ignored: bool = False) -> list[float]:
    return [TRUE_BOX, picture, label, *box, float(ignored)]


def found(picture: int, label: int, box: list[float], score: float) -> list[float]:
    return [FOUND, picture, label, *box, score]


def scores(rows: list[list[float]], crowds: bool = False) -> dict[str, float]:
    table: Tensor = torch.tensor(rows, dtype=torch.float64).reshape(-1, 8)
    return dict(average_precisions(table, CLASSES, crowds))


LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 20.0]


def test_perfect_detections_have_precision_1() -> None:
    rows = [there(0, 0, LEFT), there(1, 1, RIGHT), found(0, 0, LEFT, 0.9), found(1, 1, RIGHT, 0.2)]
    assert scores(rows) == pytest.approx(
        {"ap": 1, "ap50": 1, "ap75": 1, "voc_ap50": 1, "voc07_ap50": 1}
    )


def test_an_inexact_box_counts_only_at_low_overlaps() -> None:
    """The intersection over union is 2/3.

    So the box counts as found at four of the ten overlaps: 0.5 to 0.65.
    """
    rows = [there(0, 0, LEFT), found(0, 0, [0, 2, 10, 12], 0.5)]
    assert scores(rows) == pytest.approx(
        {"ap": 0.4, "ap50": 1, "ap75": 0, "voc_ap50": 1, "voc07_ap50": 1}
    )


def test_wrong_detections_with_high_scores_lower_the_precision() -> None:
    """In order of score, detections are wrong, right, and right again for the same box.

    One of two boxes is not found.
    """
    rows = [there(0, 0, LEFT), there(1, 0, RIGHT)]
    rows += [found(1, 0, LEFT, 0.9), found(0, 0, LEFT, 0.8), found(0, 0, LEFT, 0.7)]
    result = scores(rows)
    assert result["voc_ap50"] == pytest.approx(0.5 * 0.5)
    assert result["voc07_ap50"] == pytest.approx(6 / 11 * 0.5)  # recalls 0, 0.1 ... 0.5
    assert result["ap50"] == pytest.approx(51 / 101 * 0.5)


def test_a_class_without_objects_does_not_count() -> None:
    rows = [there(0, 0, LEFT), found(0, 0, LEFT, 0.9), found(0, 1, LEFT, 0.9)]
    assert scores(rows)["ap"] == pytest.approx(1)
    assert scores(rows)["voc_ap50"] == pytest.approx(1)


@pytest.mark.parametrize("crowds", [False, True])
def test_an_ignored_object_counts_neither_as_missing_nor_as_wrong(crowds: bool) -> None:
    rows = [there(0, 0, LEFT), there(0, 0, RIGHT, ignored=True)]
    rows += [found(0, 0, RIGHT, 0.9), found(0, 0, LEFT, 0.8)]
    found_well = scores(rows, crowds)
    assert list(found_well.values()) == pytest.approx([1] * (3 if crowds else 5))


def test_a_crowd_matches_many_detections_and_a_difficult_object_one() -> None:
    parts = [[50.0, 0.0, 60.0, 16.0], [50.0, 1.0, 60.0, 16.0]]
    rows = [there(0, 0, LEFT), there(0, 0, RIGHT, ignored=True), found(0, 0, LEFT, 0.5)]
    rows += [found(0, 0, part, 0.9) for part in parts]
    assert scores(rows, crowds=True)["ap50"] == pytest.approx(1)
    assert scores(rows, crowds=False)["ap50"] == pytest.approx(0.5)
    assert scores(rows, crowds=False)["voc_ap50"] == pytest.approx(1)  # VOC counts none of them


def test_without_detections_the_precision_is_zero() -> None:
    assert set(scores([there(0, 0, LEFT)]).values()) == {0.0}


@pytest.mark.parametrize("row", [found(0, 0, LEFT, 0.5), [PICTURE, 0, 0, 0, 0, 0, 0, 0]])
def test_without_objects_the_precision_is_nan(row: list[float]) -> None:
    result = scores([row])
    assert len(result) == 5
    assert all(math.isnan(value) for value in result.values())


def test_computing_the_precision_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    scores([there(0, 0, LEFT), found(0, 0, LEFT, 0.5)])
    assert capfd.readouterr() == ("", "")
