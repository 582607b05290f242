"""Units into modules and stages, and what crosses the cuts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import Unit
from ppll_cli.partition.layout import Chunk, Edge, Layout, cut_at, edges, group
from ppll_cli.values import ValueSpec

NAMES = ["stem", "a", "b", "head"]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], [range(4)]),
        (["b"], [range(2), range(2, 4)]),
        (["a", "b", "head"], [range(1), range(1, 2), range(2, 3), range(3, 4)]),
    ],
)
def test_cut_at(starts: list[str], expected: list[range]) -> None:
    assert cut_at(NAMES, starts, "local.cuts") == expected


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (["c"], "local.cuts=[c]: no cut can be at 'c'; use a, b, head"),
        (["stem"], "local.cuts=[stem]: no cut can be at 'stem'; use a, b, head"),
        (["b", "a"], "local.cuts=[b,a]: the units must be in the model's order, each once; reor"),
        (["a", "a"], "local.cuts=[a,a]: the units must be in the model's order, each once; reor"),
    ],
)
def test_cuts_that_cannot_be(starts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cut_at(NAMES, starts, "local.cuts")
    assert str(caught.value).startswith(message)
    assert caught.value.key == "local.cuts"


def test_group_keeps_atoms_whole() -> None:
    atoms = [range(3), range(3, 4), range(4, 6), range(6, 10)]
    assert group(atoms, [5, 1, 2, 4], 2) == [range(4), range(4, 10)]
    assert group(atoms, [5, 1, 2, 4], 4) == atoms


def test_chunks_are_the_modules_of_a_stage() -> None:
    modules = (range(2), range(2, 3), range(3, 6))
    layout = Layout(modules, stages=(range(3), range(3, 6)))
    assert layout.chunks(0) == [Chunk(0, range(2), True), Chunk(1, range(2, 3), True)]
    assert layout.chunks(1) == [Chunk(2, range(3, 6), True)]


def test_a_module_over_several_stages_ends_in_the_last() -> None:
    layout = Layout(modules=(range(6),), stages=(range(2), range(2, 3), range(3, 6)))
    assert [layout.chunks(stage) for stage in range(3)] == [
        [Chunk(0, range(2), False)],
        [Chunk(0, range(2, 3), False)],
        [Chunk(0, range(3, 6), True)],
    ]


def unit(arrow: str) -> Unit:
    """`x c > y` reads x and c, and writes y."""
    reads, writes = (tuple(side.split()) for side in arrow.split(">"))
    return Unit(arrow, nn.Identity, reads, writes)


NUMBER = ValueSpec((), torch.float32)


def anything(units: Sequence[object]) -> list[Mapping[str, ValueSpec]]:
    """Whatever is there before each unit is a number."""
    return [defaultdict(lambda: NUMBER) for _ in units]


def crossing(*arrows: str, readers: dict[int, list[str]], backward: bool = True) -> list[str]:
    """With every unit a stage of its own: `names / gradients` of each edge."""
    stages = [range(index, index + 1) for index in range(len(arrows))]
    ends = {index: [unit(f"{' '.join(names)} >")] for index, names in readers.items()}
    found = edges([unit(arrow) for arrow in arrows], stages, ends, anything(arrows), backward)
    return [f"{' '.join(edge.names)} / {' '.join(edge.gradients)}".strip() for edge in found]


CHAIN = ["image > x", "x > x", "x > x", "x > prediction"]
LOSS = ["prediction", "label"]


def test_in_a_chain_its_tensor_and_the_targets_cross() -> None:
    assert crossing(*CHAIN, readers={3: LOSS}) == ["label x / x"] * 3


def test_without_backward_no_gradients_travel() -> None:
    assert crossing(*CHAIN, readers={3: LOSS}, backward=False) == ["label x /"] * 3


def test_what_only_the_stage_itself_reads_does_not_cross() -> None:
    readers = {0: ["x", "label"], 1: ["x", "label", "image"], 3: ["prediction"]}
    assert crossing(*CHAIN, readers=readers, backward=False) == ["image label x /", "x /", "x /"]


def test_a_skip_travels_to_its_last_reader() -> None:
    arrows = ["image > x c3", "x > x", "x c3 > x", "x c3 > x", "x > prediction"]
    assert crossing(*arrows, readers={4: LOSS}) == [
        "c3 label x / c3 x",
        "c3 label x / c3 x",
        "c3 label x / c3 x",
        "label x / x",
    ]


def test_a_name_that_is_bound_anew_does_not_cross_before() -> None:
    arrows = ["image > x c", "x > x", "x > x c", "x c > prediction"]
    assert crossing(*arrows, readers={3: ["prediction"]}) == ["x / x", "x / x", "c x / c x"]


def test_what_a_batch_brings_has_no_gradient_unless_a_unit_made_it() -> None:
    arrows = ["image > x", "x image > x", "x image > x image", "x image > prediction"]
    assert crossing(*arrows, readers={3: LOSS}) == [
        "image label x / x",
        "image label x / x",
        "image label x / image x",
    ]


def test_a_loss_that_reads_an_early_output() -> None:
    arrows = ["image > x", "x > x early", "x > x", "x > prediction"]
    assert crossing(*arrows, readers={3: [*LOSS, "early"]}) == [
        "label x / x",
        "early label x / early x",
        "early label x / early x",
    ]


def test_edges_are_those_between_stages() -> None:
    units = [unit(arrow) for arrow in CHAIN]
    loss = [unit("prediction label >")]
    specs = [{"x": ValueSpec((index,), torch.float32), "label": NUMBER} for index in range(4)]
    assert edges(units, [range(4)], {3: loss}, specs, backward=True) == []
    two = edges(units, [range(3), range(3, 4)], {3: loss}, specs, backward=True)
    assert two == [Edge(("label", "x"), (NUMBER, specs[3]["x"]), ("x",))]


names = st.lists(st.sampled_from("abcd"), max_size=3, unique=True).map(tuple)
models = st.lists(st.builds(Unit, st.just("unit"), st.just(nn.Identity), names, names), min_size=1)


def test_what_a_module_makes_for_later_losses_crosses_to_the_last_of_them() -> None:
    units = [unit(arrow) for arrow in CHAIN]
    ends = {
        0: [unit("x > bank.0"), unit("x label >")],
        1: [unit("x > bank.1"), unit("x bank.0 label >")],
        2: [unit("x bank.0 bank.1 label >")],
        3: [unit("prediction label >")],
    }
    stages = [range(index, index + 1) for index in range(4)]
    assert [edge.names for edge in edges(units, stages, ends, anything(units), backward=False)] == [
        ("bank.0", "label", "x"),
        ("bank.0", "bank.1", "label", "x"),
        ("label", "x"),
    ]


def test_what_a_loss_reads_of_its_own_module_does_not_cross() -> None:
    units = [unit(arrow) for arrow in CHAIN]
    ends = {0: [unit("x > bank.0"), unit("bank.0 label >")], 3: [unit("prediction >")]}
    two = edges(units, [range(1), range(1, 4)], ends, anything(units), backward=False)
    assert two == [Edge(("x",), (NUMBER,), ())]


@given(models, st.dictionaries(st.integers(0, 9), names), st.booleans())
def test_a_name_crosses_if_a_reader_behind_the_cut_sees_what_was_bound_before_it(
    units: list[Unit], readers: dict[int, tuple[str, ...]], backward: bool
) -> None:
    ends = {index: [Unit("loss", nn.Identity, reads, ())] for index, reads in readers.items()}
    stages = [range(index, index + 1) for index in range(len(units))]

    def bound_at(name: str, stop: int) -> int:
        """The last unit before `stop` that writes the name; -1 is the batch."""
        return max((i for i in range(stop) if name in units[i].writes), default=-1)

    uses = [(i, i, name) for i, unit in enumerate(units) for name in unit.reads]
    uses += [(i, i + 1, name) for i in readers if i < len(units) for name in readers[i]]
    found = edges(units, stages, ends, anything(units), backward)
    for edge, stage in zip(found, stages[1:], strict=True):
        cut = stage.start
        expected = {name for i, stop, name in uses if i >= cut and bound_at(name, stop) < cut}
        assert edge.names == tuple(sorted(expected))
        made = tuple(name for name in edge.names if bound_at(name, cut) >= 0)
        assert edge.gradients == (made if backward else ())


@given(st.integers(1, 12), st.data())
def test_chunks_cover_every_unit_once(count: int, data: st.DataObject) -> None:
    def cut() -> tuple[range, ...]:
        names = [str(index) for index in range(count)]
        inside = st.sets(st.integers(1, count - 1)) if count > 1 else st.just(set[int]())
        return tuple(cut_at(names, [str(i) for i in sorted(data.draw(inside))], ""))

    layout = Layout(modules=cut(), stages=cut())
    chunks = [chunk for stage in range(len(layout.stages)) for chunk in layout.chunks(stage)]
    assert [unit for chunk in chunks for unit in chunk.units] == list(range(count))
    ends = [chunk.module for chunk in chunks if chunk.ends_module]
    assert ends == list(range(len(layout.modules)))
