"""Executes a stage's instructions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ppll_cli.data.batches import Ahead
from ppll_cli.job.course import Batch, EvaluationBatch, TrainBatch
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.links import Links
from ppll_cli.job.pulse import COMPILING_LIMIT_S
from ppll_cli.pipeline import instructions as do
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.mail import Mail
from ppll_cli.worker.norms import Norms
from ppll_cli.worker.recorder import Recorder
from ppll_cli.worker.upstream import Upstream

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
"""For each instruction, the kind of time that it counts as. `Loss` is not listed: it is auxiliary
time if its chunk has an auxiliary network, otherwise compute. Instructions that receive or send are
not listed: they record the times of waiting and of copying separately."""

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
        upstream: Sends and receives weights that losses of earlier modules read.
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
        self.chunks, self.batches, self.marks = chunks, batches, marks
        device = torch.device(job.device(seat))
        self.mail = Mail(seat.stage, links, device, recorder)
        self.upstream = Upstream(job, links, chunks, self.mail, recorder)
        self.instruction: do.Instruction | None = None
        self._batch, self._first_sample = Batch([]), 0
        self._norms = Norms(len(job.features), chunks.values(), device)

    def run(self, stream: Iterable[do.Instruction], batch: Batch, first_sample: int = 0) -> None:
        """Execute the instructions of a batch.

        Args:
            stream: The instructions.
            batch: The batch.
            first_sample: Number of the batch's samples that replicas with lower numbers compute.
        """
        self._batch, self._first_sample = batch, first_sample
        for chunk in self.chunks.values():
            chunk.begin(batch)
        self.execute(stream)
        for chunk in self.chunks.values():
            chunk.end()
        self._norms.end()

    def execute(self, stream: Iterable[do.Instruction]) -> None:
        """Execute instructions one after another, and measure their times."""
        settings = self.job.settings
        limit_s = COMPILING_LIMIT_S if settings.compile else settings.progress_limit
        if settings.sync_batchnorm:
            # BatchNorm waits for the other replicas in each pass, and another replica may hang.
            limit_s = None
        for instruction in stream:
            self.instruction = instruction
            kind = type(instruction)
            # A wait for other replicas has no time limit: the parent sees which replica is late.
            waits = kind is do.FinishAverage
            self.links.pulse.begin(_name(instruction), None if waits else limit_s)
            counts_as = KINDS.get(kind)
            if isinstance(instruction, do.Loss):
                auxiliary = self.chunks[instruction.chunk].auxiliary
                counts_as = "auxiliary" if auxiliary else "compute"
            if counts_as is None:
                self._do(instruction)
                continue
            with self.recorder.working(counts_as, instruction):
                self._do(instruction)

    def _do(self, instruction: do.Instruction) -> None:
        """Execute one instruction. The instructions of PPLL are here."""
        chunks, mail = self.chunks, self.mail
        match instruction:
            case do.NextBatch():
                for micro_batch, tensors in enumerate(self._next_batch()):
                    chunks[0].take_inputs(micro_batch, tensors)
            case do.ReceiveActivations(_, chunk, micro_batch):
                chunks[chunk].take_inputs(micro_batch, mail.receive(instruction))
            case do.Forward(chunk, micro_batch):
                self._hand_outputs_to(chunk, micro_batch)
                chunks[chunk].forward(micro_batch)
            case do.SendActivations(_, chunk, micro_batch):
                mail.send(instruction, chunks[chunk].take_outputs(micro_batch))
            case do.Loss(chunk, micro_batch):
                chunks[chunk].loss(micro_batch)
            case do.Backward(chunk, micro_batch):
                self._hand_gradients_to(chunk, micro_batch)
                chunks[chunk].backward(micro_batch)
            case do.Release():
                mail.release(instruction)
            case do.Step(chunk):
                chunks[chunk].step(self._batch.step, self._norms.total())
            case do.Measure(chunk, micro_batch):
                assert isinstance(mail.item, EvaluationBatch)
                chunks[chunk].measure(micro_batch, mail.item.split)
            case do.ReceiveMark():
                mail.receive(instruction)
                mail.release(instruction)
            case do.SendMark():
                mail.send(instruction, {})
            case do.Evaluate() | do.Checkpoint() | do.End():
                self.marks[type(instruction)](instruction)
            case _:
                self._do_more(instruction)

    def _do_more(self, instruction: do.Instruction) -> None:
        """Execute an instruction that only some settings, or schedules other than PPLL, need."""
        chunks, mail, norms = self.chunks, self.mail, self._norms
        match instruction:
            case do.ReceiveGradients(_, chunk, micro_batch):
                chunks[chunk].take_gradients(micro_batch, mail.receive(instruction))
            case do.SendGradients(_, chunk, micro_batch):
                mail.send(instruction, chunks[chunk].take_input_gradients(micro_batch))
            case do.BackwardInput(chunk, micro_batch):
                self._hand_gradients_to(chunk, micro_batch)
                chunks[chunk].backward_input(micro_batch)
            case do.BackwardWeight(chunk, micro_batch):
                chunks[chunk].backward_weight(micro_batch)
            case do.StartAverage(chunk):
                chunks[chunk].start_average()
            case do.FinishAverage(chunk):
                chunks[chunk].finish_average()
            case do.AddNorms():
                norms.add()
            case do.ReceiveNorms():
                norms.take(mail.receive(instruction)["norms"])
                mail.release(instruction)
            case do.SendNorms():
                mail.send(instruction, {"norms": norms.vector})
            case do.ReceiveWeights():
                self.upstream.receive(instruction, self._batch.step)
            case do.ReadWeights():
                self.upstream.read(instruction, self._batch.step)
            case do.SendWeights():
                self.upstream.send(instruction, self._batch.step)
            case _:
                raise AssertionError(f"no such instruction: {instruction}")

    def _next_batch(self) -> Sequence[Mapping[str, Tensor]]:
        """Return the tensors of each micro-batch of the batch, by name."""
        assert self.batches is not None
        item, sizes, course = self.mail.item, self._batch.sizes, self.job.course
        if isinstance(item, EvaluationBatch):
            size, numbers = course.evaluation_size, range(item.batch, item.batch + len(sizes))
            return [self.batches.evaluation(item.data_split, n, size) for n in numbers]
        assert isinstance(item, TrainBatch)
        batch = self.batches.train(item.epoch, item.batch)
        if self.job.replicas > 1:
            share = self._first_sample, sum(sizes)
            batch = {name: tensor.narrow(0, *share) for name, tensor in batch.items()}
        parts = {name: torch.split(tensor, list(sizes)) for name, tensor in batch.items()}
        return [{name: each[m] for name, each in parts.items()} for m in range(len(sizes))]

    def _hand_outputs_to(self, number: int, micro_batch: int) -> None:
        """Give a chunk the outputs of the previous chunk, if both are on this stage."""
        if number - 1 in self.chunks:
            outputs = self.chunks[number - 1].take_outputs(micro_batch)
            self.chunks[number].take_inputs(micro_batch, outputs)

    def _hand_gradients_to(self, number: int, micro_batch: int) -> None:
        """Give a chunk the gradients of the next chunk's inputs, if both are on this stage."""
        chunk = self.chunks[number]
        if number + 1 in self.chunks and not chunk.place.ends_module:
            gradients = self.chunks[number + 1].take_input_gradients(micro_batch)
            chunk.take_gradients(micro_batch, gradients)
