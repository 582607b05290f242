"""The names that are sent from chunk to chunk, and the gradients that are sent back."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.pipeline.layout import Layout
from ppll_cli.pipeline.routes import Route, Routes, Watch, find_routes
from tests.pipeline.pipelines import Part, part


def routes(*arrows: str, ends: Mapping[int, Sequence[str]], modules: Sequence[int] = ()) -> Routes:
    """Return routes in which every unit is a chunk on its own stage.

    Modules start at unit 0 and at the units in `modules`.
    """
    count = len(arrows)
    starts = [0, *modules, count]
    layout = Layout.contiguous(
        [range(start, stop) for start, stop in pairwise(starts)],
        [range(number, number + 1) for number in range(count)],
    )
    readers = {number: [part(each) for each in found] for number, found in ends.items()}
    return find_routes(layout, [part(arrow) for arrow in arrows], readers)


def crossing(
    *arrows: str, ends: Mapping[int, Sequence[str]], modules: Sequence[int] = ()
) -> list[str]:
    """Return each route between two chunks as text, `names / gradients`."""
    first, *found = routes(*arrows, ends=ends, modules=modules).into
    assert first == Route()  # chunk 0 loads the batch, so nothing is sent to it
    return [f"{' '.join(each.names)} / {' '.join(each.gradients)}".strip() for each in found]


CHAIN = ["image > x", "x > x", "x > x", "x > prediction"]
LOSS = ["prediction label >"]
EACH = [1, 2, 3]
"""Modules that consist of one unit each."""


def test_a_chain_sends_its_tensor_and_the_targets() -> None:
    assert crossing(*CHAIN, ends={3: LOSS}) == ["label x / x"] * 3


def test_no_gradient_is_sent_between_modules() -> None:
    assert crossing(*CHAIN, ends={3: LOSS}, modules=EACH) == ["label x /"] * 3


def test_integers_get_no_gradients_back() -> None:
    """Unit 1 writes integers, and unit 2 writes a float with the same name."""
    arrows = [
        part(arrow) for arrow in ["image > x", "x > x index", "x index > index", "x index > y"]
    ]
    layout = Layout.spread([range(n, n + 1) for n in range(4)], [0, 1, 2, 3])
    found = find_routes(
        layout, arrows, {3: [part("y >")]}, None, lambda unit, name: (unit, name) != (2, "index")
    )
    assert found.into[2] == Route(("index", "x"), ("x",))
    assert found.into[3] == Route(("index", "x"), ("index", "x"))


def test_gradients_are_sent_only_inside_a_module() -> None:
    ends = {1: ["x label >"], 3: LOSS}
    assert crossing(*CHAIN, ends=ends, modules=[2]) == ["label x / x", "label x /", "label x / x"]


def test_gradients_of_a_skip_are_sent_back_inside_its_module() -> None:
    """The bank of the first module is sent on, but only its own module trains it."""
    arrows = ["image > x bank", "x > x skip", "x > x", "x bank skip > prediction"]
    ends = {0: ["x label >"], 3: LOSS}
    assert crossing(*arrows, ends=ends, modules=[1]) == [
        "bank label x /",
        "bank label skip x / skip x",
        "bank label skip x / skip x",
    ]


def test_a_tensor_that_only_its_stage_reads_is_not_sent() -> None:
    ends = {0: ["x label >"], 1: ["x label image >"], 3: ["prediction >"]}
    assert crossing(*CHAIN, ends=ends, modules=EACH) == ["image label x /", "x /", "x /"]


def test_a_skip_is_sent_up_to_its_last_reader() -> None:
    arrows = ["image > x c3", "x > x", "x c3 > x", "x c3 > x", "x > prediction"]
    assert crossing(*arrows, ends={4: LOSS}) == [
        "c3 label x / c3 x",
        "c3 label x / c3 x",
        "c3 label x / c3 x",
        "label x / x",
    ]


def test_a_tensor_is_not_sent_if_its_name_is_written_again() -> None:
    arrows = ["image > x c", "x > x", "x > x c", "x c > prediction"]
    assert crossing(*arrows, ends={3: ["prediction >"]}) == ["x / x", "x / x", "c x / c x"]


def test_only_tensors_made_by_units_have_gradients() -> None:
    arrows = ["image > x", "x image > x", "x image > x image", "x image > prediction"]
    assert crossing(*arrows, ends={3: LOSS}) == [
        "image label x / x",
        "image label x / x",
        "image label x / image x",
    ]


def test_an_early_output_is_sent_to_the_loss_that_reads_it() -> None:
    arrows = ["image > x", "x > x early", "x > x", "x > prediction"]
    assert crossing(*arrows, ends={3: ["prediction label early >"]}) == [
        "label x / x",
        "early label x / early x",
        "early label x / early x",
    ]


def test_an_export_is_sent_up_to_the_last_loss_that_reads_it() -> None:
    ends = {
        0: ["x > bank.0", "x label >"],
        1: ["x > bank.1", "x bank.0 label >"],
        2: ["x bank.0 bank.1 label >"],
        3: LOSS,
    }
    assert crossing(*CHAIN, ends=ends, modules=EACH) == [
        "bank.0 label x /",
        "bank.0 bank.1 label x /",
        "label x /",
    ]


def test_an_export_that_only_its_own_loss_reads_is_not_sent() -> None:
    ends = {0: ["x > bank.0", "bank.0 label >"], 3: ["prediction >"]}
    assert crossing(*CHAIN, ends=ends, modules=EACH) == ["x /"] * 3


def test_a_chunk_knows_what_it_reads_makes_and_passes_on() -> None:
    """Tensors that the loss reads count if the chunk receives them.

    They do not count if the chunk makes them.
    """
    arrows = ["image > x c", "x > y", "y > x", "x c > prediction"]
    found = routes(*arrows, ends={1: ["y label >"], 3: LOSS}, modules=[2])
    assert [{*each} for each in found.reads] == [
        {"image"},
        {"x", "label"},
        {"y"},
        {"x", "c", "label"},
    ]
    assert [{*each} for each in found.makes] == [{"x", "c"}, {"y"}, {"x"}, {"prediction"}]
    assert [{*found.passing(chunk)} for chunk in range(4)] == [
        {"label"},
        {"c", "label"},
        {"c", "label"},
        set(),
    ]
    assert found.out_of(1) == found.into[2] == Route(("c", "label", "y"), ())
    assert found.out_of(3) == Route()


def test_a_chunk_reads_only_tensors_from_outside() -> None:
    units = [part(arrow) for arrow in ("image > x", "x > y", "y c > x", "x > prediction")]
    layout = Layout.spread([range(1), range(1, 3), range(3, 4)], [0, 1, 0])
    found = find_routes(layout, units, {3: [part("prediction label >")]})
    assert found.reads[1] == {"x", "c"}
    assert found.makes[1] == {"x", "y"}
    assert found.into == (
        Route(),
        Route(("c", "label", "x"), ("x",)),
        Route(("label", "x"), ("x",)),
    )


def test_one_chunk_has_no_routes() -> None:
    units = [part(arrow) for arrow in CHAIN]
    found = find_routes(Layout.spread([range(4)], [0]), units, {3: [part(LOSS[0])]})
    assert found.into == (Route(),)
    assert found.reads == (frozenset({"image", "label"}),)
    assert found.passing(0) == frozenset()


def test_a_loss_can_watch_a_unit_of_a_later_chunk() -> None:
    """The watches are given by units. Modules have the units 0 and 1; 2; and 3 and 4."""
    units = [part(arrow) for arrow in (*CHAIN[:-1], "x > x", "x > prediction")]
    modules = [range(2), range(2, 3), range(3, 5)]
    ends = {1: [part("x label >")], 2: [part("x label >")], 4: [part(LOSS[0])]}
    watches = {1: Watch(4, 3), 2: Watch(3, 1)}
    for stages in ([range(5)], [range(2), range(2, 5)], modules):
        found = find_routes(Layout.contiguous(modules, stages), units, ends, watches)
        assert found.watches == {0: Watch(4, 3), 1: Watch(3, 1)}
        assert [found.watched(chunk) for chunk in (0, 1)] == [2, 2]
        assert found.into == find_routes(found.layout, units, ends).into


def test_weights_are_sent_at_most_two_batches_early() -> None:
    assert [Watch(1, lag).ahead for lag in (1, 2, 3, 64)] == [1, 2, 2, 2]
    assert Watch(1).lag == 2


names = st.lists(st.sampled_from("abcd"), max_size=3, unique=True).map(tuple)
models = st.lists(st.builds(Part, names, names), min_size=1, max_size=8)


@given(models, st.dictionaries(st.integers(0, 9), names), st.data())
def test_a_tensor_is_sent_if_a_chunk_behind_the_cut_reads_it(
    units: list[Part], readers: dict[int, tuple[str, ...]], data: st.DataObject
) -> None:
    count = len(units)
    starts = sorted({0, *data.draw(st.sets(st.integers(0, count - 1)))})
    modules = [range(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True)]
    layout = Layout.contiguous(modules, [range(index, index + 1) for index in range(count)])
    found = find_routes(layout, units, {i: [Part(reads, ())] for i, reads in readers.items()})

    def bound_at(name: str, stop: int) -> int:
        """Return the last unit before `stop` that writes the name, or -1 if the batch has it."""
        return max((i for i in range(stop) if name in units[i].writes), default=-1)

    uses = [(i, i, name) for i, unit in enumerate(units) for name in unit.reads]
    uses += [(i, i + 1, name) for i in readers if i < count for name in readers[i]]
    for cut in range(1, count):
        expected = {name for i, stop, name in uses if i >= cut and bound_at(name, stop) < cut}
        assert found.into[cut].names == tuple(sorted(expected))
        first = max(start for start in starts if start <= cut)
        made = tuple(n for n in sorted(expected) if bound_at(n, cut) >= first)
        assert found.into[cut].gradients == made
