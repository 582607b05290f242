"""How many slots each channel needs, found from the instructions of all stages."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ppll_cli.errors import DeadlockError
from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.simulate import simulate


def slots_needed(streams: Sequence[Sequence[Instruction]]) -> dict[Channel, int]:
    """The slots with which the stages' streams can run, one batch after another.

    A channel has a slot for each message that its receiver holds at once, and for each that is in
    it before the first batch. Where a stage has several channels that may not be enough: then the
    channel for whose slots a sender waits gets one more, until the streams run to their end.

    Args:
        streams: The instructions of each stage for a batch.

    Raises:
        DeadlockError: They wait for one another however many slots there are.
    """
    slots: dict[Channel, int] = {}
    for stage, stream in enumerate(streams):
        slots.update(_held(stage, stream))
    twice = [[*stream, *stream] for stream in streams]
    while True:  # it ends: a channel with a slot for every message is never full
        try:
            simulate(twice, lambda *_: 0.0, lambda channel: slots[channel])
        except DeadlockError as error:
            if not error.full:
                raise
            slots[error.full[0]] += 1
        else:
            return slots


def most(found: Iterable[Mapping[Channel, int]]) -> dict[Channel, int]:
    """For each channel the largest of several numbers."""
    result: dict[Channel, int] = {}
    for each in found:
        for channel, count in each.items():
            result[channel] = max(count, result.get(channel, 0))
    return result


def _held(stage: int, stream: Iterable[Instruction]) -> dict[Channel, int]:
    """For each channel into a stage, the most messages that the stage holds, or begins with."""
    now: Counter[Channel] = Counter()
    peak: dict[Channel, int] = {}
    for instruction in stream:
        if received := rules.receives(stage, instruction):
            channel = received[0]
            now[channel] += 1
            peak[channel] = max(now[channel], peak.get(channel, channel.ahead))
        if (returned := rules.gives_back(stage, instruction)) is not None:
            now[returned] -= 1
    return peak
