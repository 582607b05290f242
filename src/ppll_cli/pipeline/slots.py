"""Finds how many slots each channel needs from the instructions of all stages."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ppll_cli.errors import DeadlockError
from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.simulate import simulate


def slots_needed(streams: Sequence[Sequence[Instruction]]) -> dict[Channel, int]:
    """Return for each channel the number of slots with which the streams run without deadlock.

    A channel has at least as many slots as its receiver holds at once, and as many as the messages
    that it holds before the first batch. If a stage has several channels, that may not be enough:
    while the simulated streams deadlock, the first channel that has no free slot for its sender
    gets one more.

    Args:
        streams: The instructions of each stage for one batch; two such batches are simulated.

    Raises:
        DeadlockError: The stages wait for one another with any number of slots.
    """
    slots: dict[Channel, int] = {}
    for stage, stream in enumerate(streams):
        slots.update(_held(stage, stream))
    twice = [[*stream, *stream] for stream in streams]
    while True:  # This ends, since a channel with a slot for every message is never full.
        try:
            simulate(twice, lambda *_: 0.0, lambda channel: slots[channel])
        except DeadlockError as error:
            if not error.full:
                raise
            slots[error.full[0]] += 1
        else:
            return slots


def most(found: Iterable[Mapping[Channel, int]]) -> dict[Channel, int]:
    """Return the largest number that any of several mappings gives for each channel."""
    result: dict[Channel, int] = {}
    for each in found:
        for channel, count in each.items():
            result[channel] = max(count, result.get(channel, 0))
    return result


def _held(stage: int, stream: Iterable[Instruction]) -> dict[Channel, int]:
    """Return the most messages that a stage holds at once, for each channel into it.

    A channel that begins with messages counts at least these.
    """
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
