"""Simulates instructions, and measures the result."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import Instruction
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.simulate import Cost, Event, Journeys, at_once, simulate


@dataclass(frozen=True)
class Simulation:
    """The instructions of each stage, with their times."""

    events: list[list[Event]]

    @property
    def makespan_s(self) -> float:
        """Seconds from the start of the simulation to the end of the last instruction."""
        return max((events[-1].end_s for events in self.events if events), default=0.0)

    @property
    def busy_s(self) -> list[float]:
        """For each stage, the total seconds of its instructions."""
        return [sum(event.end_s - event.start_s for event in events) for events in self.events]

    @property
    def bubble_fraction(self) -> float:
        """The time in which stages waited, divided by the total time of all stages."""
        return 1.0 - sum(self.busy_s) / (len(self.events) * self.makespan_s)

    @property
    def peak_held(self) -> dict[Channel, int]:
        """For each channel, the largest number of slots in use at the same time."""
        changes: dict[Channel, list[tuple[float, int]]] = defaultdict(list)
        for stage, events in enumerate(self.events):
            for event in events:
                if sent := rules.sends(stage, event.instruction):
                    changes[sent[0]].append((event.start_s, 1))
                if returned := rules.gives_back(stage, event.instruction):
                    changes[returned].append((event.end_s, -1))
        return {
            channel: max(accumulate((change for _, change in sorted(each)), initial=channel.ahead))
            for channel, each in changes.items()
        }


def simulated(
    streams: Sequence[Iterable[Instruction]],
    cost: Cost,
    slots: Callable[[Channel], int],
    journeys: Journeys = at_once,
) -> Simulation:
    """Simulate all instructions of all stages (see `simulate`)."""
    return Simulation(simulate(streams, cost, slots, journeys))
