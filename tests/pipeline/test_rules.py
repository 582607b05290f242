"""The rules that streams of instructions follow."""

import subprocess
import sys
from collections.abc import Callable

import pytest

import ppll_cli.schedules
from ppll_cli.errors import ScheduleError
from ppll_cli.schedules import rules
from ppll_cli.schedules.bp import BackPropagation
from ppll_cli.schedules.gpipe import GPipe
from ppll_cli.schedules.instructions import (
    Backward,
    End,
    FinishAverage,
    Forward,
    Instruction,
    LocalBackward,
    LocalStep,
    LocalUpdate,
    Loss,
    Measure,
    NextBatch,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveMark,
    ReceiveNorms,
    Release,
    SendActivations,
    SendGradients,
    SendMark,
    SendNorms,
    StartAverage,
    Step,
)
from ppll_cli.schedules.ll import LocalLearning
from ppll_cli.schedules.one_f_one_b import OneFOneB
from ppll_cli.schedules.pp import NaivePipeline
from ppll_cli.schedules.ppll import PPLL
from ppll_cli.schedules.rules import Channel, Message
from ppll_cli.schedules.schedule import Place, Schedule, evaluation_batch, pass_mark

N, S, F, L, B = NextBatch(), Step(), Forward(0, 0), Loss(0, 0), Backward(0, 0)
RECEIVE, GRADIENTS = ReceiveActivations(0, 0, 0), ReceiveGradients(1, 0, 0)

BAD: dict[str, tuple[list[Instruction], str]] = {
    "forward of nothing": ([F], "its inputs"),
    "forward of another micro-batch": ([ReceiveActivations(0, 0, 1), F], "its inputs"),
    "second chunk before the first": ([N, Forward(1, 0)], "its inputs"),
    "send before forward": ([N, SendActivations(1, 0, 0)], "its Forward"),
    "send of another chunk": ([N, F, SendActivations(1, 1, 0)], "its Forward"),
    "send of the batch before": ([N, F, L, B, S, N, SendActivations(1, 0, 0)], "its Forward"),
    "send of the batch before, whose module was updated": (
        [N, F, LocalUpdate(0, 0), N, SendActivations(1, 0, 0)],
        "its Forward",
    ),
    "send of the batch before on a later stage": (
        [RECEIVE, F, LocalUpdate(0, 0), RECEIVE, SendActivations(2, 0, 0)],
        "its Forward",
    ),
    "second chunk from the batch before": (
        [RECEIVE, F, LocalUpdate(0, 0), RECEIVE, Forward(1, 0)],
        "its inputs",
    ),
    "loss before forward": ([N, L], "its Forward"),
    "update before forward": ([N, LocalUpdate(0, 0)], "its Forward"),
    "update twice": ([N, F, LocalUpdate(0, 0), LocalUpdate(0, 0)], "its Forward"),
    "measure before forward": ([N, Measure(0, 0)], "its Forward"),
    "backward before forward": ([N, GRADIENTS, B], "its Forward"),
    "backward without loss or gradients": ([N, F, B], "its Loss or ReceiveGradients"),
    "backward before the gradients": ([N, F, B, GRADIENTS], "its Loss or ReceiveGradients"),
    "backward from other gradients": (
        [N, F, ReceiveGradients(1, 0, 1), B],
        "its Loss or ReceiveGradients",
    ),
    "backward twice": ([N, F, L, B, B], "its Forward"),
    "backward from the gradients of an earlier forward": (
        [N, F, L, B, F, B],
        "its Loss or ReceiveGradients",
    ),
    "gradients sent before backward": ([N, F, L, SendGradients(0, 0, 0)], "its Backward"),
    "local step before its backward": ([N, F, LocalStep(0)], "its LocalBackward"),
    "local step of the batch before": (
        [N, F, LocalBackward(0, 0), LocalStep(0), N, F, LocalStep(0)],
        "its LocalBackward",
    ),
    "local step before its average": (
        [N, F, StartAverage(0), LocalBackward(0, 0), LocalStep(0)],
        "its FinishAverage",
    ),
    "step before its average": ([N, F, L, StartAverage(0), B, S], "its FinishAverage"),
    "average of a gradient that is not complete": (
        [N, F, Forward(0, 1), StartAverage(0)],
        "all of its chunk's Backwards but one",
    ),
    "average after all backwards": (
        [N, F, L, B, StartAverage(0)],
        "all of its chunk's Backwards but one",
    ),
    "average that a later backward would miss": (
        [N, F, L, StartAverage(0), B, Forward(0, 1)],
        "the end of the average that its Backward would miss,",
    ),
    "average before the last backward": (
        [N, F, L, StartAverage(0), FinishAverage(0)],
        "the Backward of [(0, 0)]",
    ),
    "average that never began": ([N, F, L, B, FinishAverage(0)], "its StartAverage"),
    "average of the batch before": (
        [N, F, L, StartAverage(0), B, FinishAverage(0), S, N, F, L, B, FinishAverage(0)],
        "its StartAverage",
    ),
    "step before a backward": ([N, F, Forward(0, 1), L, B, S], r"the Backward of [(0, 1)]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_stream_that_computes_with_what_is_not_there(name: str) -> None:
    stream, missing = BAD[name]
    with pytest.raises(ScheduleError) as caught:
        rules.check(stream)
    assert str(caught.value).endswith(f"needs {missing} before it")


def test_the_message_names_the_instruction() -> None:
    with pytest.raises(ScheduleError, match=r"^Backward\(chunk=0, micro_batch=2\) needs its Fo"):
        rules.check([N, F, Backward(0, 2)])


def test_every_stream_of_ours_follows_the_rules() -> None:
    for kind in (BackPropagation, LocalLearning, NaivePipeline, GPipe, OneFOneB, PPLL):
        for stages in range(1, 6):
            for stage in range(stages):
                for replicas in (1, 2):
                    rules.check(_batches(kind(microbatches=3), stage, stages, replicas))


def _batches(schedule: Schedule, stage: int, stages: int, replicas: int) -> list[Instruction]:
    chunks = 2 if schedule.local else 1
    parts = schedule.microbatches
    batch = [*schedule.batch(Place(stage, stages, chunks, parts, norms=True, replicas=replicas))]
    place = Place(stage, stages, chunks)
    return [*batch, *evaluation_batch(place), *batch, *pass_mark(place, End(2))]


@pytest.mark.parametrize(
    ("send", "receive", "message"),
    [
        (SendActivations(5, 1, 3), ReceiveActivations(4, 0, 3), Message("activations", 3)),
        (SendGradients(5, 1, 3), ReceiveGradients(4, 0, 3), Message("gradients", 3)),
        (SendNorms(5), ReceiveNorms(4), Message("norms")),
        (SendMark(5), ReceiveMark(4), Message("mark")),
    ],
)
def test_a_send_and_its_receive_mean_the_same_message(
    send: Instruction, receive: Instruction, message: Message
) -> None:
    assert rules.sends(4, send) == (Channel(4, 5), message) == rules.receives(5, receive)
    assert rules.receives(4, send) is None
    assert rules.sends(5, receive) is None


@pytest.mark.parametrize("instruction", [Release(4), ReceiveNorms(4), ReceiveMark(4)])
def test_what_gives_a_slot_back(instruction: Instruction) -> None:
    assert rules.gives_back(5, instruction) == Channel(4, 5)


@pytest.mark.parametrize("rule", [rules.sends, rules.receives, rules.gives_back])
def test_computing_needs_no_channel(rule: Callable[[int, Instruction], object]) -> None:
    for instruction in (N, S, F, L, B, LocalUpdate(0, 0), Measure(0, 0), End(1)):
        assert rule(0, instruction) is None


def test_pure_parts_import_no_torch() -> None:
    folder = ppll_cli.schedules.__path__[0]
    program = f"""
import pkgutil, sys
from importlib import import_module
found = [module.name for module in pkgutil.iter_modules([{folder!r}])]
assert len(found) > 8, found
names = ["simulate", "settings", "errors", "seeding", "targets", "partition.solver"]
for name in [*names, *(f"schedules.{{name}}" for name in found)]:
    import_module(f"ppll_cli.{{name}}")
    assert "torch" not in sys.modules, f"{{name}} imports torch"
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
