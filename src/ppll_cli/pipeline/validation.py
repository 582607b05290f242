"""Checks that a schedule's instructions train all chunks of a stage, and nothing else.

A wrong schedule, for example one without the optimizer step of a chunk, could silently train
something else. `validate` refuses it before the run starts.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from numbers import Integral
from typing import TypeVar, get_args

from ppll_cli.errors import ScheduleError
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Compute,
    Forward,
    Loss,
    Measure,
    Step,
)
from ppll_cli.pipeline.schedule import Place

_Kind = TypeVar("_Kind", bound=Compute | Measure)

MOST_PER_MICRO_BATCH = 100
"""Largest accepted number of instructions per chunk and micro-batch. It stops an endless generator.
"""


def validate(place: Place, instructions: Iterable[Compute]) -> list[Compute]:
    """Check a schedule's instructions for a stage and one training batch, and return them.

    Each chunk must run its forwards, losses and backwards once per micro-batch, in the order of the
    micro-batches. There are two reasons: the rounding of a sum of gradients depends on the order of
    the additions, and messages are received in the order in which they were sent.

    Raises:
        ScheduleError: An instruction is unknown, missing, repeated or too early, or names a chunk
            or a micro-batch that the stage does not have.
    """
    return _checked(instructions, _Checker(place, get_args(Compute)))


def validate_evaluation(
    place: Place, instructions: Iterable[Forward | Measure]
) -> list[Forward | Measure]:
    """Check and return a schedule's instructions for evaluation batches computed together.

    Each chunk must run `Forward` and `Measure` once per batch, in the order of the batches.

    Raises:
        ScheduleError: An instruction is unknown, missing, repeated or too early, or names a chunk
            or a batch that the stage does not have.
    """
    return _checked(instructions, _Checker(place, (Forward, Measure)))


def _checked(instructions: Iterable[_Kind], checker: "_Checker") -> list[_Kind]:
    """Let the checker check all instructions, and return them as a list."""
    place = checker.place
    most = MOST_PER_MICRO_BATCH * (len(place.chunks) + 1) * (place.microbatches + 1)
    if not isinstance(instructions, Iterable):  # a method without `yield`
        given = f"{checker.method}() returned {instructions!r} for stage {place.stage}"
        raise ScheduleError(f"{given}, not instructions: yield them")
    found = list(islice(instructions, most + 1))
    if len(found) > most:
        raise ScheduleError(
            f"stage {place.stage} has more than {most} instructions for a batch of "
            f"{place.microbatches} micro-batch(es): check that its loops end"
        )
    for instruction in found:
        checker.check(instruction)
    checker.check_end()
    return found


class _Checker:
    """Counts a stage's instructions so far, and raises an error for a wrong next instruction."""

    def __init__(self, place: Place, allowed: tuple[type, ...]) -> None:
        self.place, self._allowed = place, allowed
        self.method = "evaluation" if Measure in allowed else "batch"
        self._layout = place.routes.layout
        # Each counter has, for each chunk, the number of micro-batches done.
        self._forwards: Counter[int] = Counter()
        self._losses: Counter[int] = Counter()
        self._inputs: Counter[int] = Counter()  # `Backward` and `BackwardInput`
        self._weights: Counter[int] = Counter()  # `Backward` and `BackwardWeight`
        self._measures: Counter[int] = Counter()
        self._stepped: set[int] = set()

    def check(self, instruction: Compute | Measure) -> None:
        """Count the next instruction, or raise ScheduleError if the instruction is wrong here."""
        if not isinstance(instruction, self._allowed):
            *names, last = (kind.__name__ for kind in self._allowed)
            raise ScheduleError(
                f"stage {self.place.stage} runs {instruction}, but {self.method}() may yield only "
                f"{', '.join(names)} and {last}"
            )
        chunks, chunk = self.place.chunks, instruction.chunk
        if not whole(chunk) or chunk not in chunks:
            raise self._error(instruction, f"the chunks of this stage are {_listed(chunks)}")
        if chunk in self._stepped:
            raise self._error(instruction, "it comes after the chunk's Step")
        match instruction:
            case Forward():
                self._check_forward(instruction)
            case Loss():
                self._check_loss(instruction)
            case Measure():
                self._count_after_forward(instruction, self._measures)
            case Backward():
                self._check_inputs(instruction)
                self._check_weights(instruction)
            case BackwardInput():
                self._check_inputs(instruction)
            case BackwardWeight():
                self._check_weights(instruction)
                if self._weights[chunk] > self._inputs[chunk]:
                    raise self._error(instruction, "its BackwardInput has to come before it")
            case Step():
                missing = self._weights[chunk]
                if missing < self.place.microbatches:
                    halved = self._inputs[chunk] > missing
                    before = (BackwardWeight if halved else Backward)(chunk, missing)
                    raise self._error(instruction, f"{before} has to come before it")
                self._stepped.add(chunk)

    def check_end(self) -> None:
        """Raise ScheduleError if a `Step` or, in evaluation, a `Measure` is missing."""
        for chunk in self.place.chunks:
            last: Measure | Step = Step(chunk)
            done = chunk in self._stepped
            if Measure in self._allowed:
                last = Measure(chunk, self._measures[chunk])
                done = last.micro_batch == self.place.microbatches
            if not done:
                raise ScheduleError(f"stage {self.place.stage} never runs {last}")

    def _check_forward(self, instruction: Forward) -> None:
        chunk, micro_batch = instruction.chunk, instruction.micro_batch
        self._count(instruction, self._forwards)
        if chunk - 1 in self.place.chunks and self._forwards[chunk - 1] <= micro_batch:
            before = Forward(chunk - 1, micro_batch)
            raise self._error(instruction, f"{before} has to come before it")

    def _check_loss(self, instruction: Loss) -> None:
        if not self._layout.chunks[instruction.chunk].ends_module:
            ends = [c for c in self.place.chunks if self._layout.chunks[c].ends_module]
            raise self._error(instruction, f"only chunks that end a module have a loss: {ends}")
        self._count_after_forward(instruction, self._losses)

    def _check_inputs(self, instruction: Backward | BackwardInput) -> None:
        chunk, micro_batch = instruction.chunk, instruction.micro_batch
        self._count_after_forward(instruction, self._inputs)
        if self._layout.chunks[chunk].ends_module:
            if self._losses[chunk] <= micro_batch:
                raise self._error(instruction, f"{Loss(chunk, micro_batch)} has to come before it")
        elif chunk + 1 in self.place.chunks and self._inputs[chunk + 1] <= micro_batch:
            after = Backward(chunk + 1, micro_batch)
            raise self._error(instruction, f"{after} has to come before it")

    def _check_weights(self, instruction: Backward | BackwardWeight) -> None:
        self._count(instruction, self._weights)

    def _count_after_forward(
        self, instruction: Loss | Backward | BackwardInput | Measure, done: Counter[int]
    ) -> None:
        """Call `_count`, and check that the chunk's forward has come before the instruction."""
        self._count(instruction, done)
        if self._forwards[instruction.chunk] <= instruction.micro_batch:
            raise self._error(instruction, "its Forward has to come before it")

    def _count(
        self,
        instruction: Forward | Loss | Backward | BackwardInput | BackwardWeight | Measure,
        done: Counter[int],
    ) -> None:
        """Check that an instruction is for the chunk's next micro-batch, and count it."""
        micro_batch, count = instruction.micro_batch, self.place.microbatches
        if not whole(micro_batch) or micro_batch not in range(count):
            raise self._error(instruction, f"the micro-batches are {_listed(range(count))}")
        if micro_batch != done[instruction.chunk]:
            kind = type(instruction).__name__
            wanted = done[instruction.chunk]
            what = f"that of micro-batch {wanted} is next" if wanted < count else "all have run"
            raise self._error(
                instruction, f"a chunk runs each {kind} once, in the order of micro-batches; {what}"
            )
        done[instruction.chunk] += 1

    def _error(self, instruction: Compute | Measure, problem: str) -> ScheduleError:
        return ScheduleError(f"{instruction} on stage {self.place.stage}: {problem}")


def whole(number: object) -> bool:
    """Return whether a number is an integer of Python or NumPy, not a bool."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
