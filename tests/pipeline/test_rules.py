"""The channel that each instruction uses, and modules that `pipeline/` must not import."""

import subprocess
import sys
from collections.abc import Callable

import pytest

import ppll_cli.pipeline
from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import (
    AddNorms,
    Backward,
    BackwardInput,
    BackwardWeight,
    Checkpoint,
    End,
    Evaluate,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    Measure,
    NextBatch,
    ReadWeights,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveMark,
    ReceiveNorms,
    ReceiveWeights,
    Release,
    SendActivations,
    SendGradients,
    SendMark,
    SendNorms,
    SendWeights,
    StartAverage,
    Step,
)
from ppll_cli.pipeline.rules import Channel, Message


@pytest.mark.parametrize(
    ("send", "receive", "channel", "message"),
    [
        (
            SendActivations(5, 1, 3),
            ReceiveActivations(4, 2, 3),
            Channel(4, 5, "activations", 2),
            Message("activations", 3),
        ),
        (
            SendGradients(5, 2, 3),
            ReceiveGradients(4, 1, 3),
            Channel(4, 5, "gradients", 1),
            Message("gradients", 3),
        ),
        (SendNorms(5), ReceiveNorms(4), Channel(4, 5, "norms"), Message("norms")),
        (
            SendWeights(5, 1, 2),
            ReceiveWeights(4, 1, 2),
            Channel(4, 5, "weights", 1, 2),
            Message("weights"),
        ),
        (SendMark(5, 1), ReceiveMark(4, 2), Channel(4, 5, "activations", 2), Message("mark")),
    ],
)
def test_a_send_and_its_receive_have_the_same_message(
    send: Instruction, receive: Instruction, channel: Channel, message: Message
) -> None:
    assert rules.sends(4, send) == (channel, message) == rules.receives(5, receive)
    assert rules.receives(4, send) is None
    assert rules.sends(5, receive) is None


@pytest.mark.parametrize(
    ("instruction", "channel"),
    [
        (Release(4, 2, "activations"), Channel(4, 5, "activations", 2)),
        (Release(4, 2, "gradients"), Channel(4, 5, "gradients", 2)),
        (ReceiveNorms(4), Channel(4, 5, "norms")),
        (ReceiveWeights(4, 1, 2), Channel(4, 5, "weights", 1, 2)),
        (ReceiveMark(4, 2), Channel(4, 5, "activations", 2)),
        (ReceiveActivations(4, 2, 0), None),
        (ReceiveGradients(4, 2, 0), None),
    ],
)
def test_each_releasing_instruction_has_its_channel(
    instruction: Instruction, channel: Channel | None
) -> None:
    assert rules.gives_back(5, instruction) == channel


@pytest.mark.parametrize("rule", [rules.sends, rules.receives, rules.gives_back])
def test_computing_instructions_use_no_channel(rule: Callable[[int, Instruction], object]) -> None:
    parts = (Forward, Loss, Backward, BackwardInput, BackwardWeight, Measure)
    marks = (Evaluate("test", 1, 1), Checkpoint(1, 1), End(1))
    of_chunks = (kind(0) for kind in (Step, StartAverage, FinishAverage, ReadWeights))
    for instruction in (NextBatch(), AddNorms(), *(p(0, 0) for p in parts), *of_chunks, *marks):
        assert rule(0, instruction) is None


def test_pure_parts_import_no_torch() -> None:
    folder = ppll_cli.pipeline.__path__[0]
    program = f"""
import sys
from importlib import import_module
from pkgutil import walk_packages
found = [module.name for module in walk_packages([{folder!r}], "ppll_cli.pipeline.")]
assert {{"ppll_cli.pipeline.passes", "ppll_cli.pipeline.schedules.zb_h1"}} <= {{*found}}, found
others = ["errors", "seeding", "config.settings", "config.targets"]
for name in [*(f"ppll_cli.{{name}}" for name in others), *found]:
    import_module(name)
    assert "torch" not in sys.modules, f"{{name}} imports torch"
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
