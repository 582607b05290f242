"""Tests of the weights that travel upstream. `test_schedules` explains the words."""

import pytest

from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import ReceiveWeights, SendWeights
from ppll_cli.pipeline.routes import Watch
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.upstream import weights
from tests.pipeline.pipelines import places, routes_of, words
from tests.pipeline.streams import stream


@pytest.mark.parametrize(
    ("modules", "before", "after"),
    [
        (  # each on its own stage: a watches b, b watches c
            [1, 1, 1],
            ["N F0a L0a B0a Sa", "F0b L0b B0b Sb", "F0c L0c B0c Sc"],
            ["N wa<1 F0a L0a B0a Sa", "wb<2 F0b L0b B0b Sb wa>0", "F0c L0c B0c Sc wb>1"],
        ),
        (
            [2, 1],
            ["F0a L0a B0a Sa F0b L0b B0b Sb", "F0c L0c B0c Sc"],
            ["wa F0a L0a B0a Sa wb<1 F0b L0b B0b Sb", "F0c L0c B0c Sc wb>0"],
        ),
        (  # averages move steps to later places
            [1, 2],
            ["F0a +a L0a B0a =a Sa", "F0b +b L0b B0b F0c +c L0c B0c =b Sb =c Sc"],
            ["wa<1 F0a +a L0a B0a =a Sa", "wb F0b +b L0b B0b F0c +c L0c B0c =b Sb wa>0 =c Sc"],
        ),
        (  # all on one stage
            [3],
            ["F0a F1a L0a L1a B0a B1a Sa F0b F1b L0b L1b B0b B1b Sb F0c F1c"],
            ["wa F0a F1a L0a L1a B0a B1a Sa wb F0b F1b L0b L1b B0b B1b Sb F0c F1c"],
        ),
    ],
)
def test_weights_are_sent_after_the_step_and_read_before_the_next_forward(
    modules: list[int], before: list[str], after: list[str]
) -> None:
    """Weights are sent once per batch, for any number of micro-batches."""
    watches = {0: Watch(1, 5), 1: Watch(2, 1)}
    here = places(routes_of(PPLL(), len(modules), modules, watches=watches))
    found = [weights(p, stream(own)) for p, own in zip(here, before, strict=True)]
    assert [*map(words, found)] == after
    for place, own in zip(here, found, strict=True):
        for each in own:
            if isinstance(each, SendWeights | ReceiveWeights):
                assert each.ahead == {0: 2, 1: 1}[each.chunk], place


def test_two_chunks_can_watch_the_same_unit() -> None:
    """Both chunks are on stage 0, but each has its own channel."""
    watches = {0: Watch(2, 1), 1: Watch(2, 7)}
    here = places(routes_of(PPLL(), 2, [2, 1], watches=watches))
    found = [weights(p, stream(own)) for p, own in zip(here, ["F0a F0b", "Sc"], strict=True)]
    assert [*map(words, found)] == ["wa<1 F0a wb<1 F0b", "Sc wa>0 wb>0"]


def test_evaluation_sends_no_weights() -> None:
    for place in places(routes_of(PPLL(), 2, watches={0: Watch(1)})):
        assert "w" not in words(passes.evaluation(place, PPLL()))
        assert "w" in words(passes.training(place, PPLL()))
