"""Executes less common instructions, for example for back-propagation, replicas and evaluation."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ppll_cli.job.course import EvaluationBatch
from ppll_cli.job.halves import backward_to_inputs
from ppll_cli.job.job import Job
from ppll_cli.job.optimizer import squared_norm
from ppll_cli.pipeline import instructions as do
from ppll_cli.tasks.task import measured
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.mail import Mail
from ppll_cli.worker.networks import Networks
from ppll_cli.worker.sums import Sums, split_of
from ppll_cli.worker.upstream import Upstream
from ppll_cli.worker.views import storages


class Further:
    """Executes the instructions that `Interpreter` does not execute itself.

    `norms` has the gradient norms of the batch, if the norm of the whole model is needed.
    """

    def __init__(self, job: Job, chunks: Mapping[int, HeldChunk], mail: Mail) -> None:
        self._chunks, self._mail = chunks, mail
        self.upstream = Upstream(job, chunks, mail)
        self.norms = Norms(len(job.features), chunks.values(), mail.device)

    def execute(self, instruction: do.Instruction, step: int) -> None:
        """Execute an instruction of the batch that comes after `step` optimizer steps."""
        chunks, mail, norms, upstream = self._chunks, self._mail, self.norms, self.upstream
        match instruction:
            case do.ReceiveGradients(_, chunk, micro_batch):
                chunks[chunk].tensors.store_gradients(micro_batch, mail.receive(instruction))
            case do.SendGradients(_, chunk, micro_batch):
                mail.send(instruction, chunks[chunk].tensors.take_input_gradients(micro_batch))
            case do.BackwardInput(chunk, micro_batch):
                self.hand_gradients(chunk, micro_batch)
                backward_input(chunks[chunk], micro_batch)
            case do.BackwardWeight(chunk, micro_batch):
                backward_weight(chunks[chunk], micro_batch)
            case do.Measure(chunk, micro_batch):
                assert isinstance(mail.item, EvaluationBatch)
                measure(chunks[chunk], micro_batch, mail.item.split)
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
                upstream.receive(instruction, step)
            case do.ReadWeights():
                upstream.read(instruction, step)
            case do.SendWeights():
                upstream.send(instruction, step)
            case _:
                raise AssertionError(f"no such instruction: {instruction}")

    def hand_gradients(self, number: int, micro_batch: int) -> None:
        """Give chunk `number` the gradients of its outputs, if the next chunk is on this stage too.

        If it is not, the gradients come in a message. A chunk that ends a module gets none: its
        own loss computes them.
        """
        chunk = self._chunks[number]
        if number + 1 in self._chunks and not chunk.place.ends_module:
            gradients = self._chunks[number + 1].tensors.take_input_gradients(micro_batch)
            chunk.tensors.store_gradients(micro_batch, gradients)


def backward_input(chunk: HeldChunk, micro_batch: int) -> None:
    """Compute the gradients of a chunk's inputs from the gradients of its outputs."""
    outputs, gradients = chunk.tensors.take_roots(micro_batch)
    if outputs:
        held = chunk.tensors[micro_batch]
        leaves = [*held.leaves.values()]
        held.weight_half = backward_to_inputs(outputs, gradients, leaves, chunk.unit_weights)
        held.received = storages(gradients)
        chunk.copy_received_gradients(micro_batch, held.received)


def backward_weight(chunk: HeldChunk, micro_batch: int) -> None:
    """Compute the gradients of a chunk's parameters, after `backward_input`."""
    held = chunk.tensors[micro_batch]
    half, held.weight_half = held.weight_half, None
    if half is not None:
        half.run()
        chunk.copy_received_gradients(micro_batch, held.received)
    chunk.complete_average()


def measure(chunk: HeldChunk, micro_batch: int, split: str) -> None:
    """Add loss and metrics of an evaluation micro-batch to `chunk.sums`; free the micro-batch.

    With averaged weights, only the last module is measured: auxiliary networks have no averages.
    """
    held, criterion = chunk.tensors[micro_batch], chunk.criterion
    values, held.values = held.values, {}
    if criterion is None or (chunk.averaged and not chunk.is_last):
        return
    with chunk.autocast(), torch.no_grad():
        loss, prediction = criterion(values)
        predictions = {"": prediction, **criterion.predict_further(values)}
        for name, found in predictions.items():
            measures = measured(chunk.job.task, found, values, training=False)
            sums = chunk.sums.setdefault(split_of(split, name), Sums())
            sums.add(loss, chunk.batch.sizes[micro_batch], measures)


class Norms:
    """Collects the squared gradient norms of all units, for the gradient norm of the whole model.

    A vector with a number for each unit travels from stage to stage. Each stage writes the numbers
    of its own units.
    """

    def __init__(self, units: int, chunks: Iterable[Networks], device: torch.device) -> None:
        self._units, self._chunks, self._device = units, chunks, device
        self._vector: Tensor | None = None
        self._total: Tensor | None = None

    @property
    def vector(self) -> Tensor:
        """The squared norm of each unit, float64 [units]; 0 if it is not written yet."""
        if self._vector is None:
            self._vector = torch.zeros(self._units, dtype=torch.float64, device=self._device)
        return self._vector

    def take(self, received: Tensor) -> None:
        """Replace `vector` by a copy of `received`, the vector from another stage."""
        self._vector, self._total = received.clone(), None

    def add(self) -> None:
        """Write this stage's squared norms into `vector`; skip units without gradients."""
        self._total = None
        for chunk in self._chunks:
            for index, parameters in zip(chunk.place.units, chunk.unit_parameters, strict=True):
                if any(parameter.grad is not None for parameter in parameters):
                    self.vector[index] = squared_norm(parameters)

    def total(self) -> Tensor | None:
        """Return the squared gradient norm of the model, a float64 scalar.

        Return None if this batch has no norms.
        """
        if self._vector is not None and self._total is None:
            self._total = torch.zeros((), dtype=torch.float64, device=self._device)
            for norm in self._vector.unbind():  # a fixed order, so that the bits are fixed
                self._total = self._total + norm
        return self._total

    def end(self) -> None:
        """Forget the gradient norms of this batch."""
        self._vector = self._total = None
