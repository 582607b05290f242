"""Simulates when each stage runs its instructions, without computing anything.

It is used to predict speed and memory, and to find how many slots each channel needs.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ppll_cli.errors import DeadlockError
from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import Channel, Message

Cost = Callable[[int, Instruction], float]
"""Returns the seconds for which an instruction of a stage keeps the stage busy, without waiting."""


class Journey(NamedTuple):
    """The duration of a transfer: of a message, or of an average over replicas.

    Attributes:
        carried_s: Seconds for which the transfer occupies its channel, while other transfers wait.
            An average occupies the network between the replicas of a stage.
        latency_s: Additional seconds until the arrival, in which other transfers need not wait.
    """

    carried_s: float = 0.0
    latency_s: float = 0.0


Journeys = Callable[[int, Instruction], Journey | None]
"""Returns the time of the transfer that an instruction of a stage starts; None if it takes no time.
"""


def at_once(stage: int, instruction: Instruction) -> Journey | None:
    """Return None: the transfer takes no time. This is the default for `journeys`."""
    return None


@dataclass(frozen=True)
class Event:
    """An instruction, and the seconds at which it starts (after any waiting) and ends."""

    instruction: Instruction
    start_s: float
    end_s: float


class _Carrier:
    def __init__(self) -> None:
        self._free_s = 0.0

    def carry(self, start_s: float, journey: Journey | None) -> float:
        if journey is None:
            return start_s
        self._free_s = max(self._free_s, start_s) + journey.carried_s
        return self._free_s + journey.latency_s


class _Channel(_Carrier):
    def __init__(self, slots: int, ahead: int) -> None:
        super().__init__()
        self.slots = slots
        # Messages with their arrival times. The first `ahead` are sent before the first batch.
        self.messages = deque([(Message("weights"), 0.0)] * ahead)
        self.free: deque[float] = deque([0.0] * (slots - ahead))  # when each slot became free


class _Stage:
    def __init__(self, number: int, stream: Iterable[Instruction]) -> None:
        self.number = number
        self.stream = list(stream)
        self.next = 0
        self.time_s = 0.0
        self.events: list[Event] = []
        self.replicas = _Carrier()  # the connection of the stage's replicas
        self.averaged_s: dict[int, float] = {}  # for each chunk, when its average arrives


def simulate(
    streams: Sequence[Iterable[Instruction]],
    cost: Cost,
    slots: Callable[[Channel], int],
    journeys: Journeys = at_once,
) -> list[list[Event]]:
    """Simulate all stages; return each stage's instructions, with the times at which they run.

    Args:
        streams: For each stage, its instructions for all batches, one batch after another.
        cost: Returns the duration of an instruction of a stage, in seconds.
        slots: Returns the number of slots of a channel.
        journeys: Returns the duration of the transfer that belongs to an instruction. By default,
            transfers take no time.

    Raises:
        DeadlockError: The stages wait for each other; the message says what each waits for.
    """
    stages = [_Stage(number, stream) for number, stream in enumerate(streams)]
    channels: dict[Channel, _Channel] = {}

    def channel(key: Channel) -> _Channel:
        if key not in channels:
            channels[key] = _Channel(slots(key), key.ahead)
        return channels[key]

    # Visits in another order have the same result: stages influence each other only through
    # channels, and a channel has one sender, one receiver and a fixed order of messages.
    to_visit = deque(stages)
    while to_visit:
        stage = to_visit.popleft()
        for number in _advance(stage, channel, cost, journeys):
            to_visit.append(stages[number])
    if any(stage.next < len(stage.stream) for stage in stages):
        raise _deadlock(stages, channel)
    return [stage.events for stage in stages]


def _advance(
    stage: _Stage, channel: Callable[[Channel], _Channel], cost: Cost, journeys: Journeys
) -> set[int]:
    touched = set()
    while stage.next < len(stage.stream):
        instruction = stage.stream[stage.next]
        start_s = stage.time_s
        if received := rules.receives(stage.number, instruction):
            key, message = received
            queue = channel(key).messages
            if not queue or queue[0][0] != message:
                break
            start_s = max(start_s, queue.popleft()[1])
        sent = rules.sends(stage.number, instruction)
        if sent:
            free = channel(sent[0]).free
            if not free:
                break
            start_s = max(start_s, free.popleft())
        if isinstance(instruction, do.FinishAverage):  # its own transfer must end before it
            start_s = max(start_s, stage.averaged_s.pop(instruction.chunk))
            start_s = stage.replicas.carry(start_s, journeys(stage.number, instruction))
        end_s = start_s + cost(stage.number, instruction)
        if sent:
            into, journey = channel(sent[0]), journeys(stage.number, instruction)
            into.messages.append((sent[1], into.carry(end_s, journey)))
            touched.add(sent[0].target)
        if isinstance(instruction, do.StartAverage):
            journey = journeys(stage.number, instruction)
            stage.averaged_s[instruction.chunk] = stage.replicas.carry(end_s, journey)
        if returned := rules.gives_back(stage.number, instruction):
            channel(returned).free.append(end_s)
            touched.add(returned.source)
        stage.events.append(Event(instruction, start_s, end_s))
        stage.time_s = end_s
        stage.next += 1
    return touched


def _wait(stage: _Stage, channel: Callable[[Channel], _Channel]) -> tuple[str, Channel | None]:
    instruction = stage.stream[stage.next]
    if received := rules.receives(stage.number, instruction):
        key, message = received
        queue = channel(key).messages
        found = f"{queue[0][0]} is there instead" if queue else "nothing is there"
        return f"{instruction} waits for {message} from stage {key.source}; {found}", None
    sent = rules.sends(stage.number, instruction)
    assert sent is not None
    slot = f"a free slot of the channel to stage {sent[0].target}"
    return f"{instruction} waits for {slot}; slots in use: {channel(sent[0]).slots}", sent[0]


def _deadlock(stages: Sequence[_Stage], channel: Callable[[Channel], _Channel]) -> DeadlockError:
    lines, full = ["the stages wait for each other:"], []
    for stage in stages:
        waits = "done"
        if stage.next < len(stage.stream):
            waits, slot_of = _wait(stage, channel)
            full += [slot_of] if slot_of else []
        lines.append(f"  stage {stage.number}: {waits}")
    return DeadlockError("\n".join(lines), full)


def peak_live(stream: Iterable[Instruction]) -> int:
    """Return the largest number of a stage's forwards that wait for their backward at one time.

    In an evaluation, a forward waits for `Measure`, the instruction that computes its loss.
    """
    live = peak = 0
    for instruction in stream:
        if isinstance(instruction, do.Forward):
            live += 1
            peak = max(peak, live)
        elif isinstance(instruction, do.Backward | do.BackwardWeight | do.Measure):
            live -= 1
    return peak
