"""A worker: what executes the instructions of one stage, or of one replica of it."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ppll_cli.data.batches import Ahead
from ppll_cli.data.source import Dataset
from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline import passes, rules
from ppll_cli.pipeline.schedule import Place
from ppll_cli.runtime import checkpoint
from ppll_cli.runtime.chunk import Batch, HeldChunk
from ppll_cli.runtime.clock import clock_of
from ppll_cli.runtime.items import EvaluationBatch, Item, TrainBatch, split_share
from ppll_cli.runtime.job import Job, Seat
from ppll_cli.runtime.links import Header, Links, upcoming
from ppll_cli.runtime.memory import PeakMemory
from ppll_cli.runtime.norms import Norms
from ppll_cli.runtime.numerics import in_force
from ppll_cli.runtime.pulse import COMPILING_LIMIT_S, SAVING_LIMIT_S, SCORING_LIMIT_S
from ppll_cli.runtime.recorder import Recorder
from ppll_cli.runtime.reports import Reports
from ppll_cli.targets import make
from ppll_cli.transport.channel import Receiver, Sender

REPORT_EVERY = 50
"""Training metrics are reported after this many steps, and at the end of an epoch."""

TRACED = 4
"""Batches of the steady state that a timeline shows, and as many more as are on their way."""

KINDS: dict[type, str] = {
    do.NextBatch: "data",
    do.Forward: "compute",
    do.Backward: "compute",
    do.BackwardInput: "compute",
    do.BackwardWeight: "compute",
    do.StartAverage: "average",
    do.FinishAverage: "average",
    do.AddNorms: "optimizer",
    do.Step: "optimizer",
}
"""What an instruction's time counts as. Waiting and copying are told apart where they happen."""

_name = lru_cache(maxsize=1024)(str)
"""An instruction as the parent sees it; the same few come in every batch."""


class Worker:
    """Executes the instructions of one stage.

    Args:
        job: The run.
        seat: The stage, and which of its replicas this is.
        links: Connections to the other stages, to the other replicas and to the parent.
    """

    def __init__(self, job: Job, seat: Seat, links: Links) -> None:
        self.job, self.seat, self.links = job, seat, links
        self.index, self.replica = index, _ = seat
        self.device = torch.device(job.device(seat))
        self.memory = PeakMemory(self.device)
        self.schedule = job.make_schedule()
        site = job.site(job.units())
        self.chunks = {
            number: HeldChunk(job, number, site, self.device, links.replicas)
            for number in job.layout.of(index)
        }
        if job.checkpoint is not None:
            with checkpoint.SavedTensors(job.checkpoint) as saved:
                for chunk in self.chunks.values():
                    chunk.restore(saved)
        self.batches: Ahead | None = None
        if 0 in self.chunks:
            dataset: Dataset = make("data", job.data)
            batches = dataset.batches(dataset.load(), job.course.batch_size, job.seed, self.device)
            self.batches = Ahead(batches, job.threads, self.device)
        buffered = job.depth * (job.stages - 1)
        clock = clock_of(self.device)
        self.reports = Reports(
            clock,
            job.task,
            stop=job.optim.nonfinite == "stop",
            tell=self.report if self.replica == 0 else None,
            get_on=links.pulse.get_on,
        )
        self.recorder = Recorder(
            clock,
            warmup=job.warmup,
            skip=min(buffered, job.course.segment // 2),
            on_steady=self.memory.reset,
            traced=TRACED + buffered if job.traced else 0,
        )
        self.item: Item | None = None
        self.instruction: do.Instruction | None = None
        self.last_train: TrainBatch | None = None  # of what is not reported yet
        self._training = False
        self._batch = Batch([])
        self._norms = Norms(len(site.units), self.chunks.values(), self.device)
        self._streams: dict[tuple[bool, int], list[do.Instruction]] = {}
        self._table: dict[type, Callable[[Any], None]] = {
            do.NextBatch: self._next_batch,
            do.ReceiveActivations: self._receive_activations,
            do.SendActivations: self._send_activations,
            do.ReceiveGradients: self._receive_gradients,
            do.SendGradients: self._send_gradients,
            do.Release: self._release,
            do.Forward: self._forward,
            do.Loss: self._loss,
            do.Backward: self._backward,
            do.BackwardInput: self._backward_input,
            do.BackwardWeight: self._backward_weight,
            do.Step: self._step,
            do.StartAverage: self._start_average,
            do.FinishAverage: self._finish_average,
            do.AddNorms: self._add_norms,
            do.ReceiveNorms: self._receive_norms,
            do.SendNorms: self._send_norms,
            do.Measure: self._measure,
            do.ReceiveMark: self._receive_mark,
            do.SendMark: self._send_mark,
            do.Evaluate: self._evaluate,
            do.Checkpoint: self._checkpoint,
            do.End: self._end,
        }

    def run(self) -> None:
        """Execute everything that flows through the pipeline."""
        if self.links.groups is not None:
            self.links.groups.open(self.device)
        for end in self.links.ends():
            end.open()
        self.report("ready")
        for item in upcoming(self.job, self.seat, self.links, self._wait):
            self.item = item
            self.links.pulse.take(str(item))
            if isinstance(item, TrainBatch):
                self._train(item)
                continue
            self._end_training()
            if not isinstance(item, EvaluationBatch):
                self._execute(passes.mark(Place(self.index, self.job.routes), item))
            elif self._evaluates(item):
                self.reports.begin(item.split)
                self._run(Batch(self.job.course.evaluation_sizes(item)))
                self.links.pulse.started = True

    def _evaluates(self, item: EvaluationBatch) -> bool:
        """Whether evaluation batches are this replica's: they take them in turn."""
        turn = item.batch // self.job.course.evaluation_batches
        return turn % self.job.replicas == self.replica

    def _train(self, item: TrainBatch) -> None:
        split = partial(split_share, item.samples, self.schedule.microbatches, self.job.replicas)
        shares = [split(replica) for replica in range(self.replica + 1)]
        sizes, first = shares[-1], sum(map(len, shares[:-1]))
        self.recorder.begin_batch(item.step)
        self.reports.begin("train")
        self._first_sample = sum(map(sum, shares[:-1]))
        self._run(Batch(sizes, True, item.step, item.samples, first))
        self.recorder.end_batch(sum(sizes))
        self.last_train, self._training = item, True
        done = item.step + 1
        self.links.pulse.step, self.links.pulse.started = done, True
        self.links.pulse.spend(self.recorder.counted_s, self.recorder.totals.spent_s)
        if item.batch + 1 == self.job.course.steps_per_epoch or done % REPORT_EVERY == 0:
            self._report_training()
        self.reports.send()

    def _end_training(self) -> None:
        """Something else than a training batch is there."""
        if not self._training:
            return
        self._training = False
        self.recorder.end_segment()
        self._report_training()
        self.reports.send()
        if self.links.replicas is not None:  # what is evaluated and saved is the first one's
            self.links.pulse.begin("waiting for the other replicas", None)
            buffers = [b for chunk in self.chunks.values() for b in chunk.buffers]
            self.links.replicas.take_from_first(buffers)

    def _run(self, batch: Batch) -> None:
        """Execute the instructions for a batch."""
        self._batch = batch
        for chunk in self.chunks.values():
            chunk.begin(batch)
        self._execute(self._stream(batch.training, len(batch.sizes)))
        for chunk in self.chunks.values():
            chunk.end()
        self._norms.end()

    def _stream(self, training: bool, count: int) -> list[do.Instruction]:
        """The instructions for so many micro-batches, which are made once."""
        if (training, count) not in self._streams:
            make = self.job.training if training else self.job.evaluation
            self._streams[training, count] = make(self.index, count)
        return self._streams[training, count]

    def _execute(self, stream: Iterable[do.Instruction]) -> None:
        limit_s = COMPILING_LIMIT_S if self.job.compiled else self.job.progress_limit_s
        if self.job.sync_batchnorm:
            # Each pass waits for the other replicas, which may be the ones that hang.
            limit_s = None
        for instruction in stream:
            self.instruction = instruction
            kind = type(instruction)
            # As with channels: the parent sees which replica is late, so this may take for ever.
            waits = kind is do.FinishAverage
            self.links.pulse.begin(_name(instruction), None if waits else limit_s)
            counts_as = KINDS.get(kind)
            if kind is do.Loss:
                auxiliary = self.chunks[instruction.chunk].auxiliary
                counts_as = "auxiliary" if auxiliary else "compute"
            if counts_as is None:
                self._table[kind](instruction)
                continue
            with self.recorder.working(counts_as, instruction):
                self._table[kind](instruction)

    # Data

    def _next_batch(self, instruction: do.NextBatch) -> None:
        assert self.batches is not None
        item, sizes, course = self.item, self._batch.sizes, self.job.course
        if isinstance(item, TrainBatch):
            batch = self.batches.train(item.epoch, item.batch)
            if self.job.replicas > 1:
                share = self._first_sample, sum(sizes)
                batch = {name: tensor.narrow(0, *share) for name, tensor in batch.items()}
            parts = {name: torch.split(tensor, sizes) for name, tensor in batch.items()}
            found = [{name: each[m] for name, each in parts.items()} for m in range(len(sizes))]
        else:
            assert isinstance(item, EvaluationBatch)
            found = [
                self.batches.evaluation(item.split, item.batch + m, course.evaluation_size)
                for m in range(len(sizes))
            ]
        for micro_batch, tensors in enumerate(found):
            self.chunks[0].take_inputs(micro_batch, tensors)

    # Channels

    def _receive_activations(self, instruction: do.ReceiveActivations) -> None:
        tensors = self._receive(instruction)
        self.links.pulse.received += 1
        self.chunks[instruction.chunk].take_inputs(instruction.micro_batch, tensors)

    def _send_activations(self, instruction: do.SendActivations) -> None:
        chunk = self.chunks[instruction.chunk]
        self._send(instruction, chunk.take_outputs(instruction.micro_batch))
        self.links.pulse.sent += 1

    def _receive_gradients(self, instruction: do.ReceiveGradients) -> None:
        chunk = self.chunks[instruction.chunk]
        chunk.take_gradients(instruction.micro_batch, self._receive(instruction))

    def _send_gradients(self, instruction: do.SendGradients) -> None:
        chunk = self.chunks[instruction.chunk]
        self._send(instruction, chunk.take_input_gradients(instruction.micro_batch))

    def _receive_norms(self, instruction: do.ReceiveNorms) -> None:
        self._norms.take(self._receive(instruction)["norms"])
        self._release(instruction)

    def _send_norms(self, instruction: do.SendNorms) -> None:
        self._send(instruction, {"norms": self._norms.vector})

    def _receive_mark(self, instruction: do.ReceiveMark) -> None:
        self._receive(instruction)
        self.links.pulse.received += 1
        self._release(instruction)

    def _send_mark(self, instruction: do.SendMark) -> None:
        self._send(instruction, {})
        self.links.pulse.sent += 1

    def _release(self, instruction: do.Instruction) -> None:
        channel = rules.gives_back(self.index, instruction)
        assert channel is not None
        self.links.receivers[channel].release()

    def _receive(self, instruction: do.Instruction) -> dict[str, Tensor]:
        found = rules.receives(self.index, instruction)
        assert found is not None
        channel, message = found
        receiver = self.links.receivers[channel]
        self._wait(receiver, "starved")
        # On CUDA the stream, and not this process, waits here for what the sender has queued.
        kind = "starved" if self.device.type == "cuda" else "transfer"
        with self.recorder.working(kind, instruction):
            header, tensors = receiver.receive()
            expected = Header(self._current(), message.micro_batch, channel.chunk)
            assert header == expected, f"expected {expected} of {channel}, got {header}"
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _send(self, instruction: do.Instruction, tensors: dict[str, Tensor]) -> None:
        found = rules.sends(self.index, instruction)
        assert found is not None
        channel, message = found
        sender = self.links.senders[channel]
        self._wait(sender, "blocked")
        with self.recorder.working("transfer", instruction):
            sender.send(Header(self._current(), message.micro_batch, channel.chunk), tensors)

    def _wait(self, end: Sender | Receiver, kind: str) -> None:
        # Other stages are never judged here: the parent ends this process when one of them fails,
        # and a thread ends it when the parent is gone.
        with self.recorder.waiting(kind):
            while not end.wait(timeout_s=1.0):
                self.links.pulse.get_on()

    def _current(self) -> Item:
        assert self.item is not None
        return self.item

    # Computing

    def _forward(self, instruction: do.Forward) -> None:
        number, micro_batch = instruction.chunk, instruction.micro_batch
        chunk = self.chunks[number]
        if number - 1 in self.chunks:
            chunk.take_inputs(micro_batch, self.chunks[number - 1].take_outputs(micro_batch))
        chunk.forward(micro_batch)

    def _loss(self, instruction: do.Loss) -> None:
        self.chunks[instruction.chunk].loss(instruction.micro_batch)

    def _backward(self, instruction: do.Backward) -> None:
        self._with_gradients(instruction).backward(instruction.micro_batch)

    def _backward_input(self, instruction: do.BackwardInput) -> None:
        self._with_gradients(instruction).backward_input(instruction.micro_batch)

    def _backward_weight(self, instruction: do.BackwardWeight) -> None:
        self.chunks[instruction.chunk].backward_weight(instruction.micro_batch)

    def _with_gradients(self, instruction: do.Backward | do.BackwardInput) -> HeldChunk:
        """A chunk, given the gradients of its outputs where the next chunk is on this stage."""
        number, micro_batch = instruction.chunk, instruction.micro_batch
        chunk = self.chunks[number]
        if number + 1 in self.chunks and not chunk.place.ends_module:
            gradients = self.chunks[number + 1].take_input_gradients(micro_batch)
            chunk.take_gradients(micro_batch, gradients)
        return chunk

    def _step(self, instruction: do.Step) -> None:
        self.chunks[instruction.chunk].step(self._norms.total())

    def _start_average(self, instruction: do.StartAverage) -> None:
        self.chunks[instruction.chunk].start_average()

    def _finish_average(self, instruction: do.FinishAverage) -> None:
        self.chunks[instruction.chunk].finish_average()

    def _add_norms(self, instruction: do.AddNorms) -> None:
        self._norms.add()

    def _measure(self, instruction: do.Measure) -> None:
        assert isinstance(self.item, EvaluationBatch)
        chunk = self.chunks[instruction.chunk]
        chunk.measure(instruction.micro_batch, self.item.split)

    # Marks

    def _evaluate(self, mark: do.Evaluate) -> None:
        self.links.pulse.begin("scoring", SCORING_LIMIT_S)
        self._report_metrics(mark.split, mark.step, mark.epoch)
        self._settle()

    def _checkpoint(self, mark: do.Checkpoint) -> None:
        self.links.pulse.begin("saving", SAVING_LIMIT_S)
        self._settle()  # a state after a loss that is no finite number is never saved
        self.report("counted", step=mark.step, **self._counted())
        if self.replica > 0:  # the first one has the same, and saves it
            return
        tensors = {n: t for chunk in self.chunks.values() for n, t in chunk.tensors().items()}
        file = checkpoint.save_stage(self.job.run_dir, mark.step, self.index, tensors)
        self.report("saved", step=mark.step, epoch=mark.epoch, file=file)

    def _end(self, mark: do.End) -> None:
        self._settle()
        ahead_s = 0.0 if self.links.groups is None else self.links.groups.ahead_s
        self.report(
            "done",
            step=mark.step,
            **self._counted(),
            numerics=in_force(self.device),
            trace=[span.later(-ahead_s) for span in self.recorder.trace],
        )

    # Reports

    def _counted(self) -> dict[str, Any]:
        """What was counted in the steady state until now."""
        totals = self.recorder.totals
        sent: Counter[int] = Counter()
        for channel, end in self.links.senders.items():
            sent[channel.target] += end.bytes_sent
        return {
            "batches": totals.batches,
            "samples": totals.samples,
            "wall_s": totals.wall_s,
            "spent_s": dict(totals.spent_s),
            "instruction_s": dict(totals.instruction_s),
            "bytes_sent": dict(sent),
            "peak_memory_bytes": self.memory.read(),
            "peak_reserved_bytes": self.memory.reserved(),
        }

    def report(self, kind: str, **fields: object) -> None:
        """Tell the parent."""
        where = {"stage": self.index, "replica": self.replica}
        self.links.parent.send({"kind": kind, **where, **fields})

    def _report_training(self) -> None:
        if self.last_train is not None:
            self._report_metrics("train", self.last_train.step + 1, self.last_train.epoch + 1)
            self.last_train = None

    def _report_metrics(self, split: str, step: int, epoch: int) -> None:
        """Begin to report what was measured since the last report."""
        if self.links.replicas is not None:
            self.links.pulse.begin("waiting for the other replicas", None)
        chunks, replicas = [*self.chunks.values()], self.links.replicas
        self.reports.take(split, step, epoch, chunks, replicas, self.device)

    def _settle(self) -> None:
        """Wait for the device, which a mark does anyway, and report all that it has done."""
        self.reports.send(wait=True)
        self.recorder.settle()
