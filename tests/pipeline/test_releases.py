"""Tests of the releases of slots. The docstring of `test_schedules` explains the words."""

from ppll_cli.pipeline.passes import communicate
from ppll_cli.pipeline.releases import release
from ppll_cli.pipeline.schedule import Place
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from tests.pipeline.pipelines import SKIP, places, routes_of, words
from tests.pipeline.streams import CHAIN_OF_3, chunks_on, stream


def released(place: Place, text: str) -> str:
    """Return the words of a stream after `communicate` and `release`."""
    return words(release(place, communicate(place, stream(text))))


def test_a_slot_is_released_after_its_last_use() -> None:
    assert [
        released(place, own)
        for place, own in zip(CHAIN_OF_3, ["F0a B0a", "F0b B0b Sb", "F0c L0c B0c"], strict=True)
    ] == [
        "F0a x0a>1 g0a<1 B0a ga/1",
        "x0b<0 F0b x0b>2 g0b<2 B0b gb/2 xb/0 g0b>0 Sb",
        "x0c<1 F0c L0c B0c xc/1 g0c>1",
    ]


def test_both_slots_are_kept_until_the_weight_half_of_a_backward() -> None:
    """This half multiplies the inputs by the received gradients, and reads both in their slots."""
    assert released(CHAIN_OF_3[1], "F0b F1b I0b I1b W0b W1b") == (
        "x0b<0 F0b x0b>2 x1b<0 F1b x1b>2 g0b<2 I0b g0b>0 g1b<2 I1b g1b>0 "
        "W0b gb/2 xb/0 W1b gb/2 xb/0"
    )


def test_a_slot_is_kept_until_a_gradient_that_passes_through_is_sent() -> None:
    here = places(routes_of(NaivePipeline(), 3, arrows=SKIP))
    after = "x0b<0 F0b x0b>2 g0b<2 B0b xb/0 g0b>0 gb/2 Sb"
    assert released(here[1], "F0b B0b Sb") == after
    halves = "x0b<0 F0b x0b>2 g0b<2 I0b g0b>0 W0b gb/2 xb/0 Sb"
    assert released(here[1], "F0b I0b W0b Sb") == halves


OVER_3 = ["image > x c", "x > x", "x > x", "x c > x"]


def test_a_slot_is_kept_while_gradients_pass_two_chunks_of_a_stage() -> None:
    """The slot was once filled again before the second chunk had sent the gradients in it."""
    here = chunks_on([0, 1, 1, 2], OVER_3, {3: "x"})
    assert released(here[1], "F0b F0c B0c B0b") == (
        "x0b<0 F0b F0c x0c>2 g0c<2 B0c B0b xb/0 g0b>0 gc/2"
    )
    assert released(here[1], "F0b F0c I0c I0b W0c W0b") == (
        "x0b<0 F0b F0c x0c>2 g0c<2 I0c I0b g0b>0 W0c W0b gc/2 xb/0"
    )


def test_a_slot_is_released_once_a_chunk_computes_new_gradients() -> None:
    arrows = ["image > x", "x > x", "x > x", "x > x"]
    here = chunks_on([0, 1, 1, 2], arrows, {3: "x"})
    assert released(here[1], "F0b F0c B0c B0b") == (
        "x0b<0 F0b F0c x0c>2 g0c<2 B0c gc/2 B0b xb/0 g0b>0"
    )


def test_a_slot_is_kept_for_a_tensor_that_a_later_chunk_reads() -> None:
    """The last module's loss reads the labels. Module c only passes them on."""
    losses = {0: "x", 1: "x", 2: "x", 3: "x label"}
    arrows = ["image > x", "x > x", "x > x", "x > x"]
    compute = "F0b L0b B0b Sb F0c L0c B0c Sc"
    read = chunks_on([0, 1, 1], arrows, {**losses, 2: "x label"})[1]
    assert released(read, compute) == "x0b<0 F0b L0b B0b Sb F0c L0c B0c xb/0 Sc"
    unread = chunks_on([0, 1, 1], arrows, losses)[1]
    assert released(unread, compute) == "x0b<0 F0b L0b B0b xb/0 Sb F0c L0c B0c Sc"
    sent = chunks_on([0, 1, 1, 2], arrows, losses)[1]
    assert released(sent, compute) == "x0b<0 F0b L0b B0b Sb F0c x0c>2 xb/0 L0c B0c Sc"


def test_a_slot_is_released_if_its_name_is_written_again() -> None:
    arrows = ["image > x", "x > x label", "x > x"]
    here = chunks_on([0, 1, 1], arrows, {0: "x", 1: "x", 2: "x label"})
    assert released(here[1], "F0b L0b B0b Sb F0c L0c B0c Sc") == (
        "x0b<0 F0b L0b B0b xb/0 Sb F0c L0c B0c Sc"
    )


def test_a_slot_that_nobody_reads_is_released_at_once() -> None:
    here = chunks_on([0, 1], ["image > x", "> x"], {0: "x", 1: "x"})
    assert released(here[1], "F0b L0b B0b Sb") == "x0b<0 xb/0 F0b L0b B0b Sb"
