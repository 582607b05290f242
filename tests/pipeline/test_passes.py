"""Tests of the passes. The docstring of `test_schedules` explains the words."""

import pytest

from ppll_cli.errors import ScheduleError
from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import Backward, Compute, Forward, Step
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from tests.pipeline.pipelines import SKIP, Given, places, routes_of, words
from tests.pipeline.streams import (
    BOTH,
    CHAIN_OF_3,
    MODULES,
    ROUND,
    TWO_OF_2,
    chunks_on,
    squeezed,
    stream,
)


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        (CHAIN_OF_3[0], "F0a B0a Sa", "F0a x0a>1 g0a<1 B0a Sa"),
        (CHAIN_OF_3[1], "F0b B0b Sb", "x0b<0 F0b x0b>2 g0b<2 B0b g0b>0 Sb"),
        (CHAIN_OF_3[2], "F0c L0c B0c Sc", "x0c<1 F0c L0c B0c g0c>1 Sc"),
        (CHAIN_OF_3[1], "F0b I0b W0b Sb", "x0b<0 F0b x0b>2 g0b<2 I0b g0b>0 W0b Sb"),
        (BOTH, "F0a F0b L0b B0b B0a Sa Sb", "F0a F0b L0b B0b B0a Sa Sb"),
        (ROUND[0], "F7a F7c B7c B7a", "F7a x7a>1 x7c<1 F7c x7c>1 g7c<1 B7c g7c>1 g7a<1 B7a"),
        (TWO_OF_2[0], "F0a L0a B0a F0b L0b B0b", "F0a L0a B0a F0b x0b>1 L0b B0b"),
        (TWO_OF_2[1], "F0c L0c B0c F0d L0d B0d", "x0c<0 F0c L0c B0c F0d L0d B0d"),
    ],
)
def test_sends_and_receives_are_added(place: Place, before: str, after: str) -> None:
    assert words(passes.communicate(place, stream(before))) == squeezed(after)


def test_gradients_are_sent_only_inside_a_module() -> None:
    """Chunks a and b are a module on two stages. Chunk c is another module."""
    here = chunks_on([0, 1, 2], ["image > x", "x > x", "x > x"], {1: "x", 2: "x"})
    compute = ["F0a B0a", "F0b L0b B0b", "F0c L0c B0c"]
    found = [passes.communicate(p, stream(own)) for p, own in zip(here, compute, strict=True)]
    assert [*map(words, found)] == [
        "F0a x0a>1 g0a<1 B0a",
        "x0b<0 F0b x0b>2 L0b B0b g0b>0",
        "x0c<1 F0c L0c B0c",
    ]


def test_the_stage_of_the_first_chunk_loads_the_batch() -> None:
    found = [words(passes.take_batch(place, stream("Sa"))) for place in (*CHAIN_OF_3, MODULES)]
    assert found == ["N Sa", "Sa", "Sa", "N Sa"]
    v_shaped = chunks_on([1, 0, 1], ["image > x", "x > x", "x > x"], {2: "x"})
    assert [words(passes.take_batch(place, stream("Sa"))) for place in v_shaped] == ["Sa", "N Sa"]


@pytest.mark.parametrize("schedule", [GPipe(microbatches=2), Interleaved(), ZeroBubbleH1(), PPLL()])
def test_evaluation_releases_all_slots_and_sends_no_gradients(schedule: Schedule) -> None:
    for place in places(routes_of(schedule, 3, 2, SKIP), 3):
        found = words(passes.evaluation(place, schedule)).split()
        received = [each for each in found if "<" in each]
        assert len(received) == len([each for each in found if "/" in each])
        assert not any(each[0] in "gBIWLS+=" for each in found)


def test_a_wrong_order_is_refused_before_any_pass() -> None:
    wrong: list[Compute] = [Forward(0, 0), Backward(0, 0), Step(0)]
    with pytest.raises(ScheduleError, match=r"Loss\(chunk=0, micro_batch=0\) has to come before"):
        passes.training(places(routes_of(NaivePipeline()))[0], Given({0: wrong}))
