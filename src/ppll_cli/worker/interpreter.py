"""Executes a stage's instructions."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from ppll_cli.data.batches import Ahead
from ppll_cli.job.course import Batch
from ppll_cli.job.job import Job
from ppll_cli.job.pulse import COMPILING_LIMIT_S
from ppll_cli.pipeline import instructions as do
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.feed import micro_batches
from ppll_cli.worker.further import Further
from ppll_cli.worker.mail import Mail

_name = lru_cache(maxsize=1024)(str)


class Interpreter:
    """Executes instructions on a stage's chunks.

    `batches` loads the batches of the data set; None on a stage without chunk 0. `marks` has, for
    each class of marks (`Evaluate`, `Checkpoint` and `End`), the function that handles such a mark.
    `instruction` is the instruction that the stage executes now.
    """

    def __init__(
        self,
        job: Job,
        chunks: Mapping[int, HeldChunk],
        batches: Ahead | None,
        mail: Mail,
        marks: Mapping[type, Callable[[Any], None]],
    ) -> None:
        self.job, self.chunks, self.batches = job, chunks, batches
        self.mail, self.marks = mail, marks
        self.further = Further(job, chunks, mail)
        self.instruction: do.Instruction | None = None
        self._batch = Batch([])

    def run(self, stream: Iterable[do.Instruction], batch: Batch) -> None:
        """Execute the instructions of a batch."""
        self._batch = batch
        for chunk in self.chunks.values():
            chunk.begin(batch)
        self.execute(stream)
        for chunk in self.chunks.values():
            chunk.end()
        self.further.norms.end()

    def execute(self, stream: Iterable[do.Instruction]) -> None:
        """Execute instructions in order, and measure their times."""
        settings = self.job.settings
        limit_s = COMPILING_LIMIT_S if settings.compile else settings.progress_limit
        if settings.sync_batchnorm:
            # BatchNorm waits for other replicas, and this worker is not to blame if one hangs.
            limit_s = None
        for instruction in stream:
            self.instruction = instruction
            # A wait for other replicas has no time limit: the parent sees which replica is late.
            waits = isinstance(instruction, do.FinishAverage)
            self.mail.links.pulse.begin(_name(instruction), None if waits else limit_s)
            with self.mail.recorder.executing(instruction):
                self._do(instruction)

    def _do(self, instruction: do.Instruction) -> None:
        chunks, mail = self.chunks, self.mail
        match instruction:
            case do.NextBatch():
                made = micro_batches(self.batches, self.job, mail.item, self._batch)
                for micro_batch, tensors in enumerate(made):
                    chunks[0].tensors.store_inputs(micro_batch, tensors)
            case do.ReceiveActivations(_, chunk, micro_batch):
                chunks[chunk].tensors.store_inputs(micro_batch, mail.receive(instruction))
            case do.Forward(chunk, micro_batch):
                if chunk - 1 in chunks:
                    outputs = chunks[chunk - 1].tensors.take_outputs(micro_batch)
                    chunks[chunk].tensors.store_inputs(micro_batch, outputs)
                chunks[chunk].forward(micro_batch)
            case do.SendActivations(_, chunk, micro_batch):
                mail.send(instruction, chunks[chunk].tensors.take_outputs(micro_batch))
            case do.Loss(chunk, micro_batch):
                chunks[chunk].loss(micro_batch)
            case do.Backward(chunk, micro_batch):
                self.further.hand_gradients(chunk, micro_batch)
                chunks[chunk].backward(micro_batch)
            case do.Step(chunk):
                chunks[chunk].step(self._batch.step, self.further.norms.total())
            case do.Release():
                mail.release(instruction)
            case do.ReceiveMark():
                mail.receive(instruction)
                mail.release(instruction)
            case do.SendMark():
                mail.send(instruction, {})
            case do.Evaluate() | do.Checkpoint() | do.End():
                self.marks[type(instruction)](instruction)
            case _:
                self.further.execute(instruction, self._batch.step)
