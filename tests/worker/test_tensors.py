"""The outputs of a chunk that wait for the next chunk of the same stage."""

import pytest
import torch

from ppll_cli.pipeline.layout import Layout
from ppll_cli.pipeline.routes import Route, Routes
from ppll_cli.worker.tensors import Tensors

NAMES = "copied", "exported", "passed"


@pytest.mark.parametrize("stages", [(0, 1, 1), (0, 1, 2)], ids=["same stage", "next stage"])
def test_outputs_that_would_change_are_copied_for_a_chunk_of_the_same_stage(
    stages: tuple[int, ...],
) -> None:
    """A unit or an export may return a view of its input or of a weight, which soon change."""
    layout = Layout.spread([range(n, n + 1) for n in range(3)], stages)
    into = Route(), Route(("passed", "x")), Route(tuple(sorted(NAMES)))
    nothing: frozenset[str] = frozenset()
    makes = nothing, frozenset({"copied", "exported"}), nothing
    tensors = Tensors(Routes(layout, into, (nothing,) * 3, makes), 1)
    slot = torch.arange(4.0)
    weight = torch.arange(2.0)
    tensors.store_inputs(0, {"x": slot[:2], "passed": slot[2:]})
    changing = tensors.changing(0, lambda: [weight])
    tensors[0].values.update(copied=weight[:1], exported=slot[1:2])
    tensors.hold_outputs(0, changing)
    slot.fill_(-1)
    weight.fill_(-1)
    outputs = {name: tensor.tolist() for name, tensor in tensors.take_outputs(0).items()}
    here = stages[1] == stages[2]
    assert outputs["copied"] == ([0] if here else [-1])
    assert outputs["exported"] == ([1] if here else [-1])
    assert outputs["passed"] == [-1, -1]  # its slot stays in use until the next chunk has read it
    assert not tensors.take_outputs(0)
