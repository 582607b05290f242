"""Tests of each pass alone. The docstring of `test_schedules` explains the words."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ppll_cli.errors import ScheduleError
from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Compute,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    NextBatch,
    ReceiveWeights,
    SendWeights,
    StartAverage,
    Step,
)
from ppll_cli.pipeline.layout import Chunk, Layout
from ppll_cli.pipeline.routes import Watch, find_routes
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.interleaved import Interleaved
from ppll_cli.pipeline.schedules.pp import NaivePipeline
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.pipeline.schedules.zb_h1 import ZeroBubbleH1
from tests.pipeline.pipelines import SKIP, Given, part, places, routes_of, words

PARTS: dict[str, Any] = {
    "F": Forward,
    "L": Loss,
    "B": Backward,
    "I": BackwardInput,
    "W": BackwardWeight,
}
OF_CHUNKS: dict[str, Any] = {"S": Step, "+": StartAverage, "=": FinishAverage}


def stream(text: str) -> list[Instruction]:
    """Return the instructions of words: `F1a` is the forward of micro-batch 1 in chunk 0."""
    found: list[Instruction] = []
    for word in text.split():
        if word == "N":
            found.append(NextBatch())
            continue
        chunk = ord(word[-1]) - ord("a")
        if word[0] in PARTS:
            found.append(PARTS[word[0]](chunk, int(word[1:-1])))
        else:
            found.append(OF_CHUNKS[word[0]](chunk))
    return found


def squeezed(text: str) -> str:
    return " ".join(text.split())


def chunks_on(
    stages: Sequence[int], arrows: Sequence[str], losses: Mapping[int, str]
) -> list[Place]:
    """Return the places of chunks with one unit each. A module ends at each loss."""
    ends = [number in losses for number in range(len(stages))]
    chunks = tuple(
        Chunk(range(number, number + 1), stage, sum(ends[:number]), ends[number])
        for number, stage in enumerate(stages)
    )
    readers = {number: [part(f"{names} >")] for number, names in losses.items()}
    return places(find_routes(Layout(chunks), [part(arrow) for arrow in arrows], readers))


CHAIN_OF_3 = places(routes_of(GPipe(), 3))  # one chunk on each stage: a, b and c
ROUND = places(routes_of(Interleaved(), 2))  # chunks a and c on stage 0, b and d on stage 1
(BOTH,) = places(routes_of(Interleaved(), 1))  # chunks a and b of one module
(MODULES,) = places(routes_of(PPLL(), 1, 3))  # chunks a, b and c, each a module
TWO_OF_2 = places(routes_of(PPLL(), 2, 2))  # modules a and b on stage 0, c and d on stage 1


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
    assert words(passes.averages(place, stream(before))) == squeezed(after)


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
    assert words(passes.norms(place, stream(before))) == squeezed(after)


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
    assert words(passes.whole_backwards(place, stream(before))) == after


@pytest.mark.parametrize(
    ("modules", "before", "after"),
    [
        (  # each on its own stage: a watches b, b watches c
            [1, 1, 1],
            ["N F0a L0a B0a Sa", "F0b L0b B0b Sb", "F0c L0c B0c Sc"],
            [
                "N wa<1 F0a L0a B0a Sa",
                "wb<2 F0b L0b B0b Sb wa>0",
                "F0c L0c B0c Sc wb>1",
            ],
        ),
        (
            [2, 1],
            ["F0a L0a B0a Sa F0b L0b B0b Sb", "F0c L0c B0c Sc"],
            ["wa F0a L0a B0a Sa wb<1 F0b L0b B0b Sb", "F0c L0c B0c Sc wb>0"],
        ),
        (  # averages move steps to later places
            [1, 2],
            ["F0a +a L0a B0a =a Sa", "F0b +b L0b B0b F0c +c L0c B0c =b Sb =c Sc"],
            [
                "wa<1 F0a +a L0a B0a =a Sa",
                "wb F0b +b L0b B0b F0c +c L0c B0c =b Sb wa>0 =c Sc",
            ],
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
    found = [passes.weights(p, stream(own)) for p, own in zip(here, before, strict=True)]
    assert [*map(words, found)] == after
    for place, own in zip(here, found, strict=True):
        for each in own:
            if isinstance(each, SendWeights | ReceiveWeights):
                assert each.ahead == {0: 2, 1: 1}[each.chunk], place


def test_two_chunks_can_watch_the_same_unit() -> None:
    """Both chunks are on stage 0, but each has its own channel."""
    watches = {0: Watch(2, 1), 1: Watch(2, 7)}
    here = places(routes_of(PPLL(), 2, [2, 1], watches=watches))
    found = [passes.weights(p, stream(own)) for p, own in zip(here, ["F0a F0b", "Sc"], strict=True)]
    assert [*map(words, found)] == ["wa<1 F0a wb<1 F0b", "Sc wa>0 wb>0"]


def test_evaluation_sends_no_weights() -> None:
    for place in places(routes_of(PPLL(), 2, watches={0: Watch(1)})):
        assert "w" not in words(passes.evaluation(place, PPLL()))
        assert "w" in words(passes.training(place, PPLL()))


def released(place: Place, text: str) -> str:
    """Return the words of a stream after `communicate` and `release`."""
    return words(passes.release(place, passes.communicate(place, stream(text))))


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
