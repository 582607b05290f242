"""Executes a stage's instructions; each kind of instruction has one method."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ppll_cli.data.batches import Ahead
from ppll_cli.job.course import Batch, EvaluationBatch, TrainBatch, Version
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Links
from ppll_cli.job.pulse import COMPILING_LIMIT_S
from ppll_cli.pipeline import instructions as do
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.mail import Mail
from ppll_cli.worker.norms import Norms
from ppll_cli.worker.recorder import Recorder

KINDS: dict[type, str] = {
    do.NextBatch: "data",
    do.Forward: "compute",
    do.Backward: "compute",
    do.BackwardInput: "compute",
    do.BackwardWeight: "compute",
    do.StartAverage: "average",
    do.FinishAverage: "average",
    do.AddNorms: "optimizer",
    do.ReadWeights: "auxiliary",
    do.Step: "optimizer",
}
"""The kind of time that each instruction is recorded as. `Loss` is not listed: it is auxiliary time
if its chunk has an auxiliary network, otherwise compute. Instructions that receive or send are not
listed either: they record the times of waiting and of copying separately."""

_name = lru_cache(maxsize=1024)(str)
"""Return the text of an instruction. Cached, because all batches have the same instructions."""


class Interpreter:
    """Executes instructions on a stage's chunks.

    Args:
        job: The run.
        seat: The numbers of the worker's stage and replica.
        links: Connections to the other stages and to the parent.
        chunks: The stage's chunks, by their number in the model.
        batches: Loads and prepares batches; None if the stage does not hold chunk 0.
        recorder: Measures the time of instructions.
        marks: For each kind of mark (evaluation, checkpoint, end), the function that handles it.

    Attributes:
        mail: Sends and receives the stage's messages, and knows the batch or mark that the stage
            handles now.
        instruction: The instruction that the stage executes now.
    """

    def __init__(
        self,
        job: Job,
        seat: Seat,
        links: Links,
        chunks: Mapping[int, HeldChunk],
        batches: Ahead | None,
        recorder: Recorder,
        marks: Mapping[type, Callable[[Any], None]],
    ) -> None:
        self.job, self.links, self.recorder = job, links, recorder
        self.chunks, self.batches = chunks, batches
        device = torch.device(job.device(seat))
        self.mail = Mail(seat.stage, links, device, recorder)
        self.instruction: do.Instruction | None = None
        self._batch, self._first_sample = Batch([]), 0
        self._norms = Norms(len(job.features), chunks.values(), device)
        self._table: dict[type, Callable[[Any], None]] = {
            **marks,
            do.NextBatch: self._next_batch,
            do.ReceiveWeights: self._receive_weights,
            do.ReadWeights: self._read_weights,
            do.ReceiveActivations: self._receive_activations,
            do.Forward: self._forward,
            do.SendActivations: self._send_activations,
            do.Loss: self._loss,
            do.ReceiveGradients: self._receive_gradients,
            do.Backward: self._backward,
            do.BackwardInput: self._backward_input,
            do.BackwardWeight: self._backward_weight,
            do.SendGradients: self._send_gradients,
            do.Release: self.mail.release,
            do.StartAverage: self._start_average,
            do.FinishAverage: self._finish_average,
            do.AddNorms: self._add_norms,
            do.ReceiveNorms: self._receive_norms,
            do.SendNorms: self._send_norms,
            do.Step: self._step,
            do.SendWeights: self._send_weights,
            do.Measure: self._measure,
            do.ReceiveMark: self._receive_mark,
            do.SendMark: self._send_mark,
        }

    def send_ahead(self) -> None:
        """Send other stages the weights that their losses read in the first batches.

        Call this before any batch.
        """
        start = self.job.start
        for channel in self.links.senders:
            if channel.kind == "weights":
                self.links.pulse.begin("sending the first weights", None)
                instruction = do.SendWeights(channel.target, channel.chunk, channel.ahead)
                for step in range(start, start + channel.ahead):
                    self._send_version(instruction, step, start)

    def run(self, stream: Iterable[do.Instruction], batch: Batch, first_sample: int = 0) -> None:
        """Execute the instructions of a batch.

        Args:
            stream: The instructions.
            batch: The batch.
            first_sample: Number of the batch's samples that replicas before this one compute.
        """
        self._batch, self._first_sample = batch, first_sample
        for chunk in self.chunks.values():
            chunk.begin(batch)
        self.execute(stream)
        for chunk in self.chunks.values():
            chunk.end()
        self._norms.end()

    def execute(self, stream: Iterable[do.Instruction]) -> None:
        """Execute instructions one after another."""
        settings = self.job.settings
        limit_s = COMPILING_LIMIT_S if settings.compile else settings.progress_limit
        if settings.sync_batchnorm:
            # BatchNorm waits for the other replicas in each pass, and one of them may be hanging.
            limit_s = None
        for instruction in stream:
            self.instruction = instruction
            kind = type(instruction)
            # Waiting for the other replicas has no time limit: the parent sees which one is late.
            waits = kind is do.FinishAverage
            self.links.pulse.begin(_name(instruction), None if waits else limit_s)
            counts_as = KINDS.get(kind)
            if isinstance(instruction, do.Loss):
                auxiliary = self.chunks[instruction.chunk].auxiliary
                counts_as = "auxiliary" if auxiliary else "compute"
            if counts_as is None:
                self._table[kind](instruction)
                continue
            with self.recorder.working(counts_as, instruction):
                self._table[kind](instruction)

    def _next_batch(self, instruction: do.NextBatch) -> None:
        assert self.batches is not None
        item, sizes, course = self.mail.item, self._batch.sizes, self.job.course
        if isinstance(item, TrainBatch):
            batch = self.batches.train(item.epoch, item.batch)
            if self.job.replicas > 1:
                share = self._first_sample, sum(sizes)
                batch = {name: tensor.narrow(0, *share) for name, tensor in batch.items()}
            parts = {name: torch.split(tensor, list(sizes)) for name, tensor in batch.items()}
            found = [{name: each[m] for name, each in parts.items()} for m in range(len(sizes))]
        else:
            assert isinstance(item, EvaluationBatch)
            found = [
                self.batches.evaluation(item.data_split, item.batch + m, course.evaluation_size)
                for m in range(len(sizes))
            ]
        for micro_batch, tensors in enumerate(found):
            self.chunks[0].take_inputs(micro_batch, tensors)

    def _receive_weights(self, instruction: do.ReceiveWeights) -> None:
        lag = self.job.routes.watches[instruction.chunk].lag
        version = Version.read_by(self._batch.step, lag)
        weights = self.mail.receive(instruction, version)
        with self.recorder.working("auxiliary", instruction):
            self.chunks[instruction.chunk].see(weights, version)
        self.mail.release(instruction)

    def _read_weights(self, instruction: do.ReadWeights) -> None:
        chunk, step = instruction.chunk, self._batch.step
        version = Version.read_by(step, self.job.routes.watches[chunk].lag)
        self.chunks[chunk].see(self._kept(chunk, step - version.steps), version)

    def _receive_activations(self, instruction: do.ReceiveActivations) -> None:
        tensors = self.mail.receive(instruction)
        self.links.pulse.received += 1
        self.chunks[instruction.chunk].take_inputs(instruction.micro_batch, tensors)

    def _forward(self, instruction: do.Forward) -> None:
        number, micro_batch = instruction.chunk, instruction.micro_batch
        chunk = self.chunks[number]
        if number - 1 in self.chunks:
            chunk.take_inputs(micro_batch, self.chunks[number - 1].take_outputs(micro_batch))
        chunk.forward(micro_batch)

    def _send_activations(self, instruction: do.SendActivations) -> None:
        chunk = self.chunks[instruction.chunk]
        self.mail.send(instruction, chunk.take_outputs(instruction.micro_batch))
        self.links.pulse.sent += 1

    def _loss(self, instruction: do.Loss) -> None:
        self.chunks[instruction.chunk].loss(instruction.micro_batch)

    def _receive_gradients(self, instruction: do.ReceiveGradients) -> None:
        chunk = self.chunks[instruction.chunk]
        chunk.take_gradients(instruction.micro_batch, self.mail.receive(instruction))

    def _backward(self, instruction: do.Backward) -> None:
        self._with_gradients(instruction).backward(instruction.micro_batch)

    def _backward_input(self, instruction: do.BackwardInput) -> None:
        self._with_gradients(instruction).backward_input(instruction.micro_batch)

    def _backward_weight(self, instruction: do.BackwardWeight) -> None:
        self.chunks[instruction.chunk].backward_weight(instruction.micro_batch)

    def _with_gradients(self, instruction: do.Backward | do.BackwardInput) -> HeldChunk:
        """Return a chunk; first give it the next chunk's gradients, if both are on this stage."""
        number, micro_batch = instruction.chunk, instruction.micro_batch
        chunk = self.chunks[number]
        if number + 1 in self.chunks and not chunk.place.ends_module:
            gradients = self.chunks[number + 1].take_input_gradients(micro_batch)
            chunk.take_gradients(micro_batch, gradients)
        return chunk

    def _send_gradients(self, instruction: do.SendGradients) -> None:
        chunk = self.chunks[instruction.chunk]
        self.mail.send(instruction, chunk.take_input_gradients(instruction.micro_batch))

    def _start_average(self, instruction: do.StartAverage) -> None:
        self.chunks[instruction.chunk].start_average()

    def _finish_average(self, instruction: do.FinishAverage) -> None:
        self.chunks[instruction.chunk].finish_average()

    def _add_norms(self, instruction: do.AddNorms) -> None:
        self._norms.add()

    def _receive_norms(self, instruction: do.ReceiveNorms) -> None:
        self._norms.take(self.mail.receive(instruction)["norms"])
        self.mail.release(instruction)

    def _send_norms(self, instruction: do.SendNorms) -> None:
        self.mail.send(instruction, {"norms": self._norms.vector})

    def _step(self, instruction: do.Step) -> None:
        self.chunks[instruction.chunk].step(self._batch.step, self._norms.total())

    def _send_weights(self, instruction: do.SendWeights) -> None:
        step = self._batch.step
        self._send_version(instruction, step + instruction.ahead, step + 1)

    def _send_version(self, instruction: do.SendWeights, step: int, done: int) -> None:
        """Send the weights that a later batch will read, unless the run ends before that batch.

        Args:
            instruction: The instruction; it names the chunk whose loss reads the weights.
            step: Number of optimizer steps done before the batch that reads them.
            done: Number of optimizer steps done now.
        """
        if step < self.job.course.steps:
            version = Version.read_by(step, self.job.routes.watches[instruction.chunk].lag)
            weights = self._kept(instruction.chunk, done - version.steps)
            self.mail.send(instruction, weights, version)

    def _kept(self, watcher: int, age: int) -> Mapping[str, Tensor]:
        """Return weights of a unit of this stage that the loss of another chunk reads.

        Args:
            watcher: Number of the chunk whose loss reads the weights.
            age: How many optimizer steps ago the unit had these weights.

        Returns:
            The unit's parameters by name.
        """
        routes = self.job.routes
        holder = self.chunks[routes.watched(watcher)]
        return holder.versions[routes.watches[watcher].unit].of_age(age)

    def _measure(self, instruction: do.Measure) -> None:
        assert isinstance(self.mail.item, EvaluationBatch)
        chunk = self.chunks[instruction.chunk]
        chunk.measure(instruction.micro_batch, self.mail.item.split)

    def _receive_mark(self, instruction: do.ReceiveMark) -> None:
        self.mail.receive(instruction)
        self.links.pulse.received += 1
        self.mail.release(instruction)

    def _send_mark(self, instruction: do.SendMark) -> None:
        self.mail.send(instruction, {})
        self.links.pulse.sent += 1
