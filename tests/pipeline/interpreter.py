"""Executes streams with symbols in place of tensors, to compare what workers would compute.

A symbol is a number that stands for how a value was computed. So two values are equal only if they
were computed in the same way. A slot is emptied when it is given back, and the next message fills
it again. So an instruction that reads the slot too late is noticed.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from ppll_cli.pipeline import rules
from ppll_cli.pipeline.instructions import (
    AddNorms,
    Backward,
    BackwardInput,
    BackwardWeight,
    FinishAverage,
    Forward,
    Instruction,
    Loss,
    Measure,
    NextBatch,
    ReadWeights,
    ReceiveActivations,
    ReceiveGradients,
    ReceiveNorms,
    ReceiveWeights,
    SendActivations,
    SendGradients,
    SendNorms,
    SendWeights,
    StartAverage,
    Step,
)
from ppll_cli.pipeline.routes import Routes
from ppll_cli.pipeline.rules import Channel
from tests.pipeline.pipelines import Streams

Value = int
Read = Callable[[], Value]
"""Reads a value when it is called: from its slot, or from its own memory."""
Names = dict[str, Read]
Slot = dict[str, Value]

_numbers: dict[object, Value] = {}


def symbol(*how: object) -> Value:
    """Return the symbol for a value that is computed in this way."""
    return _numbers.setdefault(how, len(_numbers))


def on_its_own(value: Value) -> Read:
    return lambda: value


def in_slot(slot: Slot, name: str) -> Read:
    def read() -> Value:
        assert name in slot, f"{name} is read after its slot was given back"
        return slot[name]

    return read


def values(names: Mapping[str, Read]) -> tuple[tuple[str, Value], ...]:
    return tuple((name, names[name]()) for name in sorted(names))


class Stage:
    """The state of a worker."""

    def __init__(self, number: int, routes: Routes, channels: dict[Channel, "Wire"]) -> None:
        self.number, self.routes, self.channels = number, routes, channels
        self.own = routes.layout.of(number)
        self.held: dict[Channel, deque[Slot]] = defaultdict(deque)
        self.batch = -1
        self.steps: Counter[int] = Counter()
        self.inputs: dict[tuple[int, int], Names] = {}
        self.outputs: dict[tuple[int, int], Names] = {}
        self.losses: dict[tuple[int, int], Value] = {}
        self.gradients: dict[tuple[int, int], Names] = {}  # gradients of a chunk's outputs
        self.gradients_of_inputs: dict[tuple[int, int], Names] = {}
        self.sums: dict[int, tuple[Value, ...]] = defaultdict(tuple)
        self.averaging: set[int] = set()
        self.averaged: set[int] = set()
        self.vector: dict[int, tuple[Value, ...]] = {}
        self.stepped: list[tuple[int, tuple[Value, ...]]] = []
        self.norms: list[dict[int, tuple[Value, ...]]] = []
        self.measured: list[Value] = []
        self.seen: dict[int, list[int]] = defaultdict(list)  # steps of the watched weights

    def can(self, instruction: Instruction) -> bool:
        """Return whether the slot to send, or the message to receive, is there."""
        if (sent := rules.sends(self.number, instruction)) is not None:
            return bool(self.channels[sent[0]].free)
        if (received := rules.receives(self.number, instruction)) is not None:
            queue = self.channels[received[0]].messages
            assert not queue or queue[0][0] == received[1], f"{queue[0][0]} for {instruction}"
            return bool(queue)
        return True

    def run(self, instruction: Instruction) -> None:
        """Execute an instruction."""
        content = self._compute(instruction)
        if (sent := rules.sends(self.number, instruction)) is not None:
            wire = self.channels[sent[0]]
            slot = wire.free.popleft()
            slot.update(content or {})
            wire.messages.append((sent[1], slot))
        if (received := rules.receives(self.number, instruction)) is not None:
            slot = self.channels[received[0]].messages.popleft()[1]
            self.held[received[0]].append(slot)
            self._received(instruction, slot)
        if (returned := rules.gives_back(self.number, instruction)) is not None:
            slot = self.held[returned].popleft()
            slot.clear()
            self.channels[returned].free.append(slot)

    def _received(self, instruction: Instruction, slot: Slot) -> None:
        names = {name: in_slot(slot, name) for name in slot}
        match instruction:
            case ReceiveActivations(_, chunk, m):
                assert tuple(names) == self.routes.into[chunk].names
                self.inputs[chunk, m] = names
            case ReceiveGradients(_, chunk, m):
                assert tuple(names) == self.routes.out_of(chunk).gradients
                self.gradients[chunk, m] = names
            case ReceiveNorms():
                self.vector.update(slot)  # type: ignore[arg-type]
            case ReceiveWeights(_, chunk):
                self.seen[chunk].append(slot["steps"])

    def _compute(self, instruction: Instruction) -> Any:
        """Execute the computation of an instruction. Return what it sends, if it sends."""
        match instruction:
            case NextBatch():
                self.batch += 1
            case Forward(chunk, m):
                self._forward(chunk, m)
            case Loss(chunk, m):
                seen = tuple(self.seen[chunk])
                self.losses[chunk, m] = symbol("loss", chunk, m, self._read(chunk, m), seen)
            case Measure(chunk, m):
                self.measured.append(symbol("measure", chunk, m, self._read(chunk, m)))
            case SendActivations(_, chunk, m):
                return dict(values(self.outputs[chunk, m]))
            case SendGradients(_, chunk, m):
                return dict(values(self.gradients_of_inputs[chunk, m]))
            case Backward(chunk, m):
                self._backward_input(chunk, m)
                self._backward_weight(chunk, m)
            case BackwardInput(chunk, m):
                self._backward_input(chunk, m)
            case BackwardWeight(chunk, m):
                self._backward_weight(chunk, m)
            case StartAverage(chunk):
                self.averaging.add(chunk)
            case FinishAverage(chunk):
                assert chunk in self.averaging
                self.averaged.add(chunk)
                self.sums[chunk] = (symbol("average", self.sums[chunk]),)
            case AddNorms():
                self.vector.update({chunk: self.sums[chunk] for chunk in self.own})
            case SendNorms():
                return dict(self.vector)
            case SendWeights(_, watcher, ahead):
                return {"steps": self._steps(watcher) + ahead - self.routes.watches[watcher].lag}
            case ReadWeights(watcher):
                self.seen[watcher].append(
                    self._steps(watcher) + 1 - self.routes.watches[watcher].lag
                )
            case Step(chunk):
                self.stepped.append((chunk, self.sums.pop(chunk)))
                self.steps[chunk] += 1
                self.averaging.discard(chunk)
                self.averaged.discard(chunk)
                self.norms.append(dict(self.vector))
        return None

    def _steps(self, watcher: int) -> int:
        """Return the number of steps of the unit that a chunk watches.

        The unit is on this stage.
        """
        return self.steps[self.routes.watched(watcher)]

    def _read(self, chunk: int, m: int) -> tuple[tuple[str, Value], ...]:
        """Return the values of all inputs that a chunk reads."""
        inputs = self.inputs[chunk, m]
        return values({name: inputs[name] for name in self.routes.reads[chunk]})

    def _forward(self, chunk: int, m: int) -> None:
        routes = self.routes
        names = routes.reads[chunk] | routes.passing(chunk)
        if chunk == 0:
            self.inputs[0, m] = {n: on_its_own(symbol("batch", self.batch, m, n)) for n in names}
        elif not routes.layout.crosses(chunk):
            self.inputs[chunk, m] = self.outputs[chunk - 1, m]
        inputs, read = self.inputs[chunk, m], self._read(chunk, m)
        self.outputs[chunk, m] = {
            name: inputs[name]
            if name in routes.passing(chunk)
            else on_its_own(symbol("forward", chunk, m, name, read, self.steps[chunk]))
            for name in routes.out_of(chunk).names
        }

    def _roots(self, chunk: int, m: int) -> tuple[object, ...]:
        """Return the start of a backward: a module's loss, or gradients of the chunk's outputs."""
        if chunk + 1 in self.own and not self.routes.layout.crosses(chunk + 1):
            self.gradients[chunk, m] = self.gradients_of_inputs.get((chunk + 1, m), {})
        if self.routes.layout.chunks[chunk].ends_module:
            return (self.losses[chunk, m],)
        names = self.routes.out_of(chunk).gradients
        found = self.gradients.get((chunk, m), {})
        assert {*found} == {*names}
        return values(found)

    def _backward_input(self, chunk: int, m: int) -> None:
        routes, roots = self.routes, self._roots(chunk, m)
        read = self._read(chunk, m)
        found: Names = {}
        for name in routes.into[chunk].gradients:
            through = name in routes.passing(chunk) and name not in routes.reads[chunk]
            if through and name in (outer := self.gradients.get((chunk, m), {})):
                found[name] = outer[name]  # the received tensor itself
            else:
                found[name] = on_its_own(symbol("input", chunk, m, name, read, roots))
        self.gradients_of_inputs[chunk, m] = found

    def _backward_weight(self, chunk: int, m: int) -> None:
        assert chunk not in self.averaged
        value = symbol("weight", chunk, m, self._read(chunk, m), self._roots(chunk, m))
        self.sums[chunk] = (*self.sums[chunk], value)


class Wire:
    """A channel: its messages, and its free slots."""

    def __init__(self, slots: int) -> None:
        self.messages: deque[tuple[object, Slot]] = deque()
        self.free: deque[Slot] = deque({} for _ in range(slots))


def execute(routes: Routes, streams: Streams, slots: Mapping[Channel, int]) -> list[Stage]:
    """Run all stages to the end of their streams, and return their states."""
    wires = {channel: Wire(count) for channel, count in slots.items()}
    for channel, wire in wires.items():
        for early in range(channel.ahead):
            slot = wire.free.popleft()
            slot["steps"] = early + 1 - routes.watches[channel.chunk].lag
            wire.messages.append((rules.Message("weights"), slot))
    stages = [Stage(number, routes, wires) for number in range(len(streams))]
    left = [deque(stream) for stream in streams]
    while any(left):
        before = sum(map(len, left))
        for stage, stream in zip(stages, left, strict=True):
            while stream and stage.can(stream[0]):
                stage.run(stream.popleft())
        assert sum(map(len, left)) < before, "the stages wait for each other"
    for stage in stages:
        assert not any(stage.held.values()), "a slot was never given back"
    for channel, wire in wires.items():
        assert len(wire.messages) == channel.ahead, "a message was never taken"
    return stages
