"""Checks that a schedule's instructions train all chunks of a stage, and nothing else.

A wrong schedule, for example one without the optimizer step of a chunk, could train the model
wrongly without an error. `validate` refuses such a schedule before the run starts.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from numbers import Integral
from typing import TypeVar, get_args

from ppll_cli.errors import ScheduleError
from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.schedule import Place

Checked = do.Compute | do.Measure
_Kind = TypeVar("_Kind", bound=Checked)

MOST_PER_MICRO_BATCH = 100
"""Largest accepted number of instructions per chunk and micro-batch. It stops an endless generator.
"""


def validate(place: Place, instructions: Iterable[do.Compute]) -> list[do.Compute]:
    """Check a schedule's instructions for a stage and one training batch, and return them.

    Each chunk must run its forwards, losses and backwards once per micro-batch, in the order of the
    micro-batches.

    Raises:
        ScheduleError: An instruction is unknown, missing, repeated or too early, or names a chunk
            or a micro-batch that the stage does not have.
    """
    return _checked(instructions, _Checker(place, get_args(do.Compute)))


def validate_evaluation(
    place: Place, instructions: Iterable[do.Forward | do.Measure]
) -> list[do.Forward | do.Measure]:
    """Check a schedule's instructions for evaluation batches, and return them.

    These batches are computed together, like the micro-batches of a training batch.

    Each chunk must run `Forward` and `Measure` once per batch, in the order of the batches.

    Raises:
        ScheduleError: An instruction is unknown, missing, repeated or too early, or names a chunk
            or a batch that the stage does not have.
    """
    return _checked(instructions, _Checker(place, (do.Forward, do.Measure)))


def _checked(instructions: Iterable[_Kind], checker: "_Checker") -> list[_Kind]:
    place = checker.place
    most = MOST_PER_MICRO_BATCH * (len(place.chunks) + 1) * (place.microbatches + 1)
    if not isinstance(instructions, Iterable):  # a method without `yield`
        given = f"{checker.method}() returned {instructions!r} for stage {place.stage}"
        raise ScheduleError(f"{given} instead of instructions: the method must yield them")
    found = list(islice(instructions, most + 1))
    if len(found) > most:
        raise ScheduleError(
            f"stage {place.stage} has more than {most} instructions for a batch of "
            f"{place.microbatches} micro-batch(es): check that the loops of {checker.method}() end"
        )
    for instruction in found:
        checker.check(instruction)
    checker.check_end()
    return found


class _Checker:
    def __init__(self, place: Place, allowed: tuple[type, ...]) -> None:
        self.place, self._allowed = place, allowed
        self.method = "evaluation" if do.Measure in allowed else "batch"
        self._layout = place.routes.layout
        # For each kind of instruction and chunk, the number of instructions so far. A whole
        # `Backward` counts as both of its halves.
        self._done: Counter[tuple[type, int]] = Counter()

    def check(self, instruction: Checked) -> None:
        # A subclass of `Forward` is refused too: it would be counted separately.
        if type(instruction) not in self._allowed:
            *names, last = (kind.__name__ for kind in self._allowed)
            raise ScheduleError(
                f"stage {self.place.stage} runs {instruction}, but {self.method}() may yield only "
                f"{', '.join(names)} and {last}"
            )
        chunks, chunk = self.place.chunks, instruction.chunk
        if not whole(chunk) or chunk not in chunks:
            raise self._error(instruction, f"the chunks of this stage are {_listed(chunks)}")
        if self._done[do.Step, chunk]:
            raise self._error(instruction, "it comes after the chunk's Step")
        if isinstance(instruction, do.Loss) and not self._layout.chunks[chunk].ends_module:
            ends = [c for c in chunks if self._layout.chunks[c].ends_module]
            raise self._error(instruction, f"only chunks that end a module have a loss: {ends}")
        if not isinstance(instruction, do.Step):
            self._check_micro_batch(instruction)
        for before in self._needed(instruction):
            if self._done[_counted(before)[0], before.chunk] <= before.micro_batch:
                raise self._error(instruction, f"{before} has to come before it")
        for kind in _counted(instruction):
            self._done[kind, chunk] += 1

    def check_end(self) -> None:
        for chunk in self.place.chunks:
            last: do.Measure | do.Step = do.Step(chunk)
            count = 1
            if do.Measure in self._allowed:
                last = do.Measure(chunk, self._done[do.Measure, chunk])
                count = self.place.microbatches
            if self._done[type(last), chunk] < count:
                raise ScheduleError(f"stage {self.place.stage} never runs {last}")

    def _check_micro_batch(self, instruction: do.OfMicroBatch) -> None:
        micro_batch, count = instruction.micro_batch, self.place.microbatches
        if not whole(micro_batch) or micro_batch not in range(count):
            raise self._error(instruction, f"the micro-batches are {_listed(range(count))}")
        for counted in _counted(instruction):
            # Why in order: the rounding of a sum of gradients depends on the order of the
            # additions, and messages are received in the order in which they were sent.
            wanted = self._done[counted, instruction.chunk]
            if micro_batch != wanted:
                kind = type(instruction).__name__
                what = f"that of micro-batch {wanted} is next" if wanted < count else "all have run"
                problem = f"a chunk runs each {kind} once, in the order of micro-batches; {what}"
                raise self._error(instruction, problem)

    def _needed(self, instruction: Checked) -> list[do.OfMicroBatch]:
        chunks, chunk = self.place.chunks, instruction.chunk
        match instruction:
            case do.Forward(_, micro_batch):
                return [do.Forward(chunk - 1, micro_batch)] if chunk - 1 in chunks else []
            case do.Loss(_, micro_batch) | do.Measure(_, micro_batch):
                return [do.Forward(chunk, micro_batch)]
            case do.Backward(_, micro_batch) | do.BackwardInput(_, micro_batch):
                gradients: list[do.OfMicroBatch] = []
                if self._layout.chunks[chunk].ends_module:
                    gradients = [do.Loss(chunk, micro_batch)]
                elif chunk + 1 in chunks:
                    gradients = [do.Backward(chunk + 1, micro_batch)]
                return [do.Forward(chunk, micro_batch), *gradients]
            case do.BackwardWeight(_, micro_batch):
                return [do.BackwardInput(chunk, micro_batch)]
        missing = self._done[do.BackwardWeight, chunk]
        if missing == self.place.microbatches:
            return []
        halved = self._done[do.BackwardInput, chunk] > missing
        return [(do.BackwardWeight if halved else do.Backward)(chunk, missing)]

    def _error(self, instruction: object, problem: str) -> ScheduleError:
        return ScheduleError(f"{instruction} on stage {self.place.stage}: {problem}")


def _counted(instruction: object) -> tuple[type, ...]:
    if isinstance(instruction, do.Backward):
        return do.BackwardInput, do.BackwardWeight
    return (type(instruction),)


def whole(number: object) -> bool:
    """Return whether a number is an integer of Python or NumPy. A bool is not one here."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
