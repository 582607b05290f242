"""Tests of the passes for gradients. The docstring of `test_schedules` explains the words."""

import pytest

from ppll_cli.pipeline import gradients
from ppll_cli.pipeline.schedule import Place
from ppll_cli.pipeline.schedules.ppll import PPLL
from tests.pipeline.pipelines import places, routes_of, words
from tests.pipeline.streams import BOTH, CHAIN_OF_3, MODULES, ROUND, squeezed, stream


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        (CHAIN_OF_3[0], "F0a F1a I0a I1a W0a W1a Sa", "F0a F1a B0a B1a Sa"),
        (CHAIN_OF_3[1], "F0b I0b W0b Sb", "F0b I0b W0b Sb"),
        (ROUND[0], "F0a F0c I0c I0a W0c W0a Sa Sc", "F0a F0c I0c B0a W0c Sa Sc"),
        (MODULES, "F0a L0a I0a W0a Sa F0b L0b I0b W0b", "F0a L0a B0a Sa F0b L0b B0b"),
    ],
)
def test_a_backward_is_not_split_if_no_input_gets_a_gradient(
    place: Place, before: str, after: str
) -> None:
    assert words(gradients.whole_backwards(place, stream(before))) == after


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        (  # no loss before the last backward: the average starts right before this backward
            CHAIN_OF_3[1],
            "F0b F1b B0b    B1b    Sb",
            "F0b F1b B0b +b B1b =b Sb",
        ),
        (  # this loss completes the auxiliary network's gradients, so the average starts before it
            CHAIN_OF_3[2],
            "F0c L0c B0c F1c    L1c B1c    Sc",
            "F0c L0c B0c F1c +c L1c B1c =c Sc",
        ),
        (  # the loss is not right before the last backward
            CHAIN_OF_3[2],
            "F0c L0c F1c L1c B0c    B1c    Sc",
            "F0c L0c F1c L1c B0c +c B1c =c Sc",
        ),
        (  # the loss right before the backward is that of another chunk
            BOTH,
            "F0a F0b    L0b    B0b    B0a    Sa    Sb",
            "F0a F0b +b L0b    B0b +a B0a =a Sa =b Sb",
        ),
        (  # the second half computes the gradients of the weights
            CHAIN_OF_3[1],
            "F0b F1b I0b I1b W0b    W1b    Sb",
            "F0b F1b I0b I1b W0b +b W1b =b Sb",
        ),
        (  # the step is not moved, because another chunk waits for gradients
            BOTH,
            "F0a F0b    L0b B0b    Sb    B0a    Sa",
            "F0a F0b +b L0b B0b =b Sb +a B0a =a Sa",
        ),
        (  # under local learning, the step moves behind the backward of the next module
            MODULES,
            "F0a    L0a B0a Sa F0b    L0b B0b       Sb F0c    L0c B0c             Sc",
            "F0a +a L0a B0a    F0b +b L0b B0b =a Sa    F0c +c L0c B0c =b Sb =c Sc",
        ),
        (  # without a next module, the step is not moved
            places(routes_of(PPLL(), 1))[0],
            "F0a    L0a B0a    Sa",
            "F0a +a L0a B0a =a Sa",
        ),
        (  # the step also moves past forwards and losses of other modules
            MODULES,
            "F0a    F0b    L0a    B0a Sa    L0b B0b Sb             F0c    L0c B0c    Sc",
            "F0a    F0b +a L0a    B0a    +b L0b B0b    =a Sa       F0c +c L0c B0c =b Sb =c Sc",
        ),
    ],
)
def test_averages_start_before_the_last_backward_and_end_before_the_step(
    place: Place, before: str, after: str
) -> None:
    assert words(gradients.averages(place, stream(before))) == squeezed(after)


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        (CHAIN_OF_3[0], "F0a B0a Sa", "F0a B0a     n+ n>1 n<1     Sa"),
        (CHAIN_OF_3[1], "F0b B0b Sb", "F0b B0b n<0 n+ n>2 n<2 n>0 Sb"),
        (CHAIN_OF_3[2], "F0c L0c B0c Sc", "F0c L0c B0c n<1 n+ n>1 Sc"),
        (BOTH, "F0a F0b L0b B0b Sb B0a Sa", "F0a F0b L0b B0b B0a n+ Sb Sa"),
        (BOTH, "F0a F0b +b L0b B0b =b Sb +a B0a =a Sa", "F0a F0b +b L0b B0b +a B0a =b =a n+ Sb Sa"),
    ],
)
def test_norms_are_exchanged_after_averages_and_before_steps(
    place: Place, before: str, after: str
) -> None:
    assert words(gradients.norms(place, stream(before))) == squeezed(after)
