"""Text on pictures: the places of labels, and how they are drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ppll_cli.data.drawing import (
    INK,
    PAGE_WIDTH,
    PAPER,
    Rectangle,
    draw_border,
    draw_label,
    draw_lead,
    font_of,
    free_place,
    ink_on,
    label_size,
    overlap,
    shortened,
    text_size,
)

FRAME = (200, 120)


@st.composite
def boxes(draw: st.DrawFn) -> Rectangle:
    left, top = draw(st.integers(0, 198)), draw(st.integers(0, 118))
    return left, top, draw(st.integers(left + 1, 200)), draw(st.integers(top + 1, 120))


@given(st.lists(st.tuples(boxes(), st.integers(10, 90), st.integers(8, 20)), max_size=30))
def test_labels_are_inside_the_picture_and_do_not_overlap(
    given_labels: list[tuple[Rectangle, int, int]],
) -> None:
    taken: list[Rectangle] = []
    for number, (box, width, height) in enumerate(given_labels):
        place = free_place((width, height), box, FRAME, taken, below=number % 2 == 1)
        if place is None:
            continue
        assert (place[2] - place[0], place[3] - place[1]) == (width, height)
        assert 0 <= place[0] < place[2] <= FRAME[0]
        assert 0 <= place[1] < place[3] <= FRAME[1]
        assert not any(overlap(place, other) for other in taken)
        taken.append(place)


def test_labels_get_places_until_there_is_no_room() -> None:
    """All labels are for one box, until the picture is full.

    The first places are beside the box.
    """
    taken: list[Rectangle] = []
    while (place := free_place((40, 20), (80, 40, 130, 70), FRAME, taken)) is not None:
        taken.append(place)
    assert taken[0] == (80, 20, 120, 40)
    assert len(taken) >= 20  # 30 labels have the area of the picture
    assert free_place((40, 20), (80, 40, 130, 70), FRAME, [], below=True) == (80, 70, 120, 90)
    assert free_place((201, 20), (80, 40, 130, 70), FRAME, []) is None


def test_text_is_larger_on_pictures_wider_than_a_page() -> None:
    assert text_size(300) == text_size(PAGE_WIDTH) == 14
    assert text_size(2 * PAGE_WIDTH) == 28


def test_text_that_is_too_wide_is_shortened() -> None:
    font = font_of(14)
    text = "a very long name of a class " * 4
    short = shortened(text, font, 14, 100)
    assert short.endswith("...")
    assert text.startswith(short[:-3])
    assert label_size(short, font, 14)[0] <= 100 < label_size(short[:-3] + "aa...", font, 14)[0]
    assert shortened("short", font, 14, 100) == "short"


@pytest.mark.parametrize(
    ("ground", "ink"), [(PAPER, INK), ((255, 255, 0), INK), ((90, 60, 255), PAPER)]
)
def test_text_contrasts_with_its_background(
    ground: tuple[int, int, int], ink: tuple[int, int, int]
) -> None:
    assert ink_on(ground) == ink
    picture = Image.new("RGB", (100, 40), (0, 255, 0))
    draw_label(ImageDraw.Draw(picture), (10, 5, 80, 30), "dress", font_of(14), ground)
    pixels = np.array(picture)
    assert (pixels[5:30, 10:80] == ink).all(axis=2).any()
    assert not (pixels[5:30, 10:80] == (0, 255, 0)).all(axis=2).any()
    pixels[5:30, 10:80] = (0, 255, 0)
    assert (pixels == (0, 255, 0)).all()  # nothing is drawn outside of the label


def test_dashes_are_visible_on_dark_and_light_pictures() -> None:
    picture = Image.new("RGB", (40, 30), (0, 255, 0))
    draw_border(picture, (5, 4, 35, 26), (PAPER, INK), 2)
    pixels = np.array(picture)
    for row in (pixels[4, 5:35], pixels[25, 5:35], pixels[4:26, 5], pixels[4:26, 34]):
        assert {tuple(pixel) for pixel in row.tolist()} == {PAPER, INK}
    pixels[4:26, 5:35] = (0, 255, 0)
    assert (pixels == (0, 255, 0)).all()


def test_a_line_connects_a_distant_label_with_its_box() -> None:
    for place, leads in (((0, 0, 20, 10), True), ((50, 20, 70, 30), False)):
        picture = Image.new("RGB", FRAME, (0, 255, 0))
        draw_lead(ImageDraw.Draw(picture), place, (50, 30, 90, 60), (255, 0, 0), 2)
        assert (np.array(picture) == (255, 0, 0)).all(axis=2).any() == leads
