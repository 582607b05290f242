"""Finds how many slots each channel needs, given the instructions of all stages."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_

from ppll_cli.errors import DeadlockError
from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.simulate import simulate


def slots_needed(streams: Sequence[Sequence[Instruction]]) -> dict[Channel, int]:
    """Return, for each channel, a number of slots with which the stages do not deadlock.

    `streams` has the instructions of each stage for one batch.

    Raises:
        DeadlockError: The stages wait for each other, however many slots there are.
    """
    slots: dict[Channel, int] = {}
    for stage, stream in enumerate(streams):
        slots.update(_held(stage, stream))
    # With as many slots as the receivers use at the same time, the stages may still deadlock if a
    # stage has several channels. Then the first channel whose sender waits gets another slot.
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
    """Return, for each channel, its largest number of slots in any of the mappings."""
    return reduce(or_, map(Counter, found), Counter[Channel]())


def _held(stage: int, stream: Iterable[Instruction]) -> dict[Channel, int]:
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
