"""The distribution of units among chunks and stages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.errors import ConfigError
from ppll_cli.pipeline.layout import Chunk, Layout, cut_at

NAMES = ["stem", "a", "b", "head"]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], [range(4)]),
        (["b"], [range(2), range(2, 4)]),
        (["a", "b", "head"], [range(1), range(1, 2), range(2, 3), range(3, 4)]),
    ],
)
def test_cuts_are_found_by_name(starts: list[str], expected: list[range]) -> None:
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
def test_impossible_cuts_are_refused(starts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cut_at(NAMES, starts, "local.cuts")
    assert str(caught.value).startswith(message)
    assert caught.value.key == "local.cuts"


MODULES = (range(2), range(2, 3), range(3, 6))
LOCAL = Layout.contiguous(MODULES, [range(3), range(3, 6)])
"""Each chunk is a module. Stage 0 has two of them."""
WHOLE = Layout.contiguous([range(6)], [range(2), range(2, 3), range(3, 6)])
"""One module with a chunk on each of three stages."""
ROUND = Layout.spread([range(n, n + 1) for n in range(4)], [0, 1, 0, 1])
V_SHAPED = Layout.spread([range(2), range(2, 3), range(3, 5), range(5, 6)], [0, 1, 1, 0])


def test_each_module_on_a_stage_is_a_chunk() -> None:
    assert LOCAL.chunks == (
        Chunk(range(2), 0, 0, True),
        Chunk(range(2, 3), 0, 1, True),
        Chunk(range(3, 6), 1, 2, True),
    )
    assert LOCAL.modules == MODULES


def test_a_module_over_several_stages_ends_on_the_last_one() -> None:
    assert WHOLE.chunks == (
        Chunk(range(2), 0, 0, False),
        Chunk(range(2, 3), 1, 0, False),
        Chunk(range(3, 6), 2, 0, True),
    )
    assert WHOLE.modules == (range(6),)


def test_a_stage_that_ends_inside_a_module_gets_a_chunk_of_it() -> None:
    layout = Layout.contiguous([range(2), range(2, 6)], [range(3), range(3, 6)])
    assert layout.chunks == (
        Chunk(range(2), 0, 0, True),
        Chunk(range(2, 3), 0, 1, False),
        Chunk(range(3, 6), 1, 1, True),
    )
    assert layout.modules == (range(2), range(2, 6))
    assert [layout.modules_of(stage) for stage in range(2)] == [[0, 1], [1]]


def test_an_interleaved_layout_is_a_single_module() -> None:
    assert ROUND.chunks == (
        Chunk(range(1), 0, 0, False),
        Chunk(range(1, 2), 1, 0, False),
        Chunk(range(2, 3), 0, 0, False),
        Chunk(range(3, 4), 1, 0, True),
    )
    assert ROUND.modules == (range(4),)


def test_a_layout_needs_a_stage_for_each_run() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Layout.spread([range(1), range(1, 2)], [0])


@pytest.mark.parametrize(
    ("layout", "chunks", "units", "modules"),
    [
        (LOCAL, [(0, 1), (2,)], [[0, 1, 2], [3, 4, 5]], [[0, 1], [2]]),
        (WHOLE, [(0,), (1,), (2,)], [[0, 1], [2], [3, 4, 5]], [[0], [0], [0]]),
        (ROUND, [(0, 2), (1, 3)], [[0, 2], [1, 3]], [[0], [0]]),
        (V_SHAPED, [(0, 3), (1, 2)], [[0, 1, 5], [2, 3, 4]], [[0], [0]]),
    ],
)
def test_a_layout_knows_chunks_units_and_modules_of_each_stage(
    layout: Layout, chunks: list[tuple[int, ...]], units: list[list[int]], modules: list[list[int]]
) -> None:
    assert layout.stages == len(chunks)
    stages = range(layout.stages)
    assert [layout.of(stage) for stage in stages] == chunks
    assert [layout.units(stage) for stage in stages] == units
    assert [layout.modules_of(stage) for stage in stages] == modules


@pytest.mark.parametrize(
    ("layout", "cuts", "crosses"),
    [
        (LOCAL, [3], [False, False, True]),
        (WHOLE, [2, 3], [False, True, True]),
        (ROUND, [1, 2, 3], [False, True, True, True]),
        (V_SHAPED, [2, 5], [False, True, False, True]),
    ],
)
def test_cuts_are_between_chunks_of_two_stages(
    layout: Layout, cuts: list[int], crosses: list[bool]
) -> None:
    assert layout.cuts() == cuts
    assert [layout.crosses(chunk) for chunk in range(len(layout.chunks))] == crosses
    assert not layout.crosses(len(layout.chunks))  # nothing is sent after the last chunk


@given(st.integers(1, 12), st.data())
def test_chunks_cover_every_unit_once(count: int, data: st.DataObject) -> None:
    def cut() -> tuple[range, ...]:
        names = [str(index) for index in range(count)]
        inside = st.sets(st.integers(1, count - 1)) if count > 1 else st.just(set[int]())
        return tuple(cut_at(names, [str(i) for i in sorted(data.draw(inside))], ""))

    modules, stages = cut(), cut()
    layout = Layout.contiguous(modules, stages)
    assert [unit for chunk in layout.chunks for unit in chunk.units] == list(range(count))
    assert layout.modules == modules
    ends = [chunk.module for chunk in layout.chunks if chunk.ends_module]
    assert ends == list(range(len(modules)))
    assert [layout.units(stage) for stage in range(layout.stages)] == [[*own] for own in stages]
    assert layout.cuts() == [units.start for units in stages[1:]]


def test_units_of_neighbouring_chunks_are_one_run() -> None:
    """There are two runs if a schedule interleaves, and one if the chunks are neighbours."""
    layout = Layout.spread([range(2), range(2, 3), range(3, 5), range(5, 6)], [0, 1, 0, 0])
    assert [layout.units(stage) for stage in (0, 1)] == [[0, 1, 3, 4, 5], [2]]
    assert [layout.runs(stage) for stage in (0, 1)] == [[[0, 1], [3, 4, 5]], [[2]]]
