"""A worker: what executes the instructions of one stage, or of one replica of it."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ppll_cli.data.batches import Ahead
from ppll_cli.data.source import Dataset
from ppll_cli.runtime import checkpoint
from ppll_cli.runtime.clock import clock_of
from ppll_cli.runtime.items import EvaluationBatch, Item, TrainBatch, split_share
from ppll_cli.runtime.job import Job, Seat
from ppll_cli.runtime.links import Header, Links, upcoming
from ppll_cli.runtime.memory import PeakMemory
from ppll_cli.runtime.numerics import in_force
from ppll_cli.runtime.pulse import COMPILING_LIMIT_S, SAVING_LIMIT_S, SCORING_LIMIT_S
from ppll_cli.runtime.recorder import Recorder
from ppll_cli.runtime.reports import Reports
from ppll_cli.runtime.stage import Stage
from ppll_cli.schedules import instructions as do
from ppll_cli.schedules.schedule import Place, evaluation_batch, pass_mark
from ppll_cli.targets import make
from ppll_cli.transport.channel import Receiver, Sender

REPORT_EVERY = 50
"""Training metrics are reported after this many steps, and at the end of an epoch."""

TRACED = 4
"""Batches of the steady state that a timeline shows, and as many more as are on their way."""

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
        self.stage = Stage(job, index, self.device, links.replicas)
        if job.checkpoint is not None:
            with checkpoint.SavedTensors(job.checkpoint) as saved:
                self.stage.restore(saved)
        self.batches: Ahead | None = None
        if index == 0:
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
        self._first_chunk = job.layout.first_chunk(index)
        self._streams: dict[int, list[do.Instruction]] = {}
        self.last_train: TrainBatch | None = None  # of what is not reported yet
        self._training = False
        self._gradients: dict[int, dict[str, Tensor]] = {}
        self._norms: Tensor | None = None
        self._table: dict[type, Callable[[Any], None]] = {
            do.NextBatch: self._next_batch,
            do.ReceiveActivations: self._receive_activations,
            do.SendActivations: self._send_activations,
            do.Release: self._release,
            do.Forward: self._forward,
            do.LocalUpdate: self._local_update,
            do.LocalBackward: self._local_backward,
            do.LocalStep: self._local_step,
            do.StartAverage: self._start_average,
            do.FinishAverage: self._finish_average,
            do.Loss: self._loss,
            do.Backward: self._backward,
            do.ReceiveGradients: self._receive_gradients,
            do.SendGradients: self._send_gradients,
            do.AddNorms: self._add_norms,
            do.ReceiveNorms: self._receive_norms,
            do.SendNorms: self._send_norms,
            do.Step: self._step,
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
            else:
                self._end_training()
                place = Place(self.index, self.job.stages, len(self.stage.chunks))
                if not self._concerns(item):
                    continue
                if isinstance(item, EvaluationBatch):
                    self.reports.begin(item.split)
                    self.stage.begin(training=False, sizes=[item.samples])
                    self._execute(evaluation_batch(place))
                    self.stage.end()
                    self.links.pulse.started = True
                else:
                    self._execute(pass_mark(place, item))

    def _concerns(self, item: Item) -> bool:
        """Whether there is something to do; replicas take evaluation batches in turn."""
        if isinstance(item, EvaluationBatch):
            return item.batch % self.job.replicas == self.replica
        return True

    def _train(self, item: TrainBatch) -> None:
        split = partial(split_share, item.samples, self.schedule.microbatches, self.job.replicas)
        shares = [split(replica) for replica in range(self.replica + 1)]
        sizes, first = shares[-1], sum(map(len, shares[:-1]))
        self.recorder.begin_batch(item.step)
        self.reports.begin("train")
        self.stage.begin(True, sizes, item.step, item.samples, first)
        self._first_sample = sum(map(sum, shares[:-1]))
        self._execute(self._stream(len(sizes)))
        self.stage.end()
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
            chunks = self.stage.chunks
            self.links.replicas.take_from_first([b for chunk in chunks for b in chunk.buffers])

    def _stream(self, microbatches: int) -> list[do.Instruction]:
        """The instructions for a batch of so many micro-batches, which are made once."""
        if microbatches not in self._streams:
            place = self.job.place(self.index, microbatches)
            self._streams[microbatches] = [*self.schedule.batch(place)]
        return self._streams[microbatches]

    def _execute(self, stream: Iterable[do.Instruction]) -> None:
        limit_s = COMPILING_LIMIT_S if self.job.compiled else self.job.progress_limit_s
        if self.job.sync_batchnorm:
            limit_s = (
                None  # each pass waits for the other replicas, which may be the ones that hang
            )
        for instruction in stream:
            self.instruction = instruction
            self.links.pulse.begin(_name(instruction), limit_s)
            self._table[type(instruction)](instruction)

    # Data

    def _next_batch(self, instruction: do.NextBatch) -> None:
        assert self.batches is not None
        with self.recorder.working("data", instruction):
            if isinstance(self.item, TrainBatch):
                batch = self.batches.train(self.item.epoch, self.item.batch)
            else:
                assert isinstance(self.item, EvaluationBatch)
                size = self.job.course.evaluation_size
                batch = self.batches.evaluation(self.item.split, self.item.batch, size)
            sizes = self.stage.sizes
            if self.job.replicas > 1 and isinstance(self.item, TrainBatch):
                share = self._first_sample, sum(sizes)
                batch = {name: tensor.narrow(0, *share) for name, tensor in batch.items()}
            parts = {name: torch.split(tensor, sizes) for name, tensor in batch.items()}
            for micro_batch in range(len(sizes)):
                part = {name: tensors[micro_batch] for name, tensors in parts.items()}
                self.stage.put(micro_batch, part)

    # Channels

    def _receive_activations(self, instruction: do.ReceiveActivations) -> None:
        chunk = self._first_chunk + instruction.chunk - 1
        tensors = self._receive(instruction.peer, instruction, instruction.micro_batch, chunk)
        self.stage.put(instruction.micro_batch, tensors)

    def _send_activations(self, instruction: do.SendActivations) -> None:
        outputs = self.stage.outputs(instruction.micro_batch)
        chunk = self._first_chunk + instruction.chunk
        self._send(instruction.peer, outputs, instruction, instruction.micro_batch, chunk)

    def _receive_gradients(self, instruction: do.ReceiveGradients) -> None:
        chunk = self._first_chunk + instruction.chunk
        tensors = self._receive(instruction.peer, instruction, instruction.micro_batch, chunk)
        self._gradients[instruction.micro_batch] = tensors

    def _send_gradients(self, instruction: do.SendGradients) -> None:
        gradients = self.stage.input_gradients(instruction.micro_batch)
        chunk = self._first_chunk + instruction.chunk - 1
        self._send(instruction.peer, gradients, instruction, instruction.micro_batch, chunk)

    def _release(self, instruction: do.Release) -> None:
        self.links.receivers[instruction.peer].release()

    def _receive_norms(self, instruction: do.ReceiveNorms) -> None:
        self._norms = self._receive(instruction.peer, instruction)["norms"].clone()
        self.links.receivers[instruction.peer].release()

    def _send_norms(self, instruction: do.SendNorms) -> None:
        assert self._norms is not None
        self._send(instruction.peer, {"norms": self._norms}, instruction)

    def _receive_mark(self, instruction: do.ReceiveMark) -> None:
        self._receive(instruction.peer, instruction)
        self.links.receivers[instruction.peer].release()

    def _send_mark(self, instruction: do.SendMark) -> None:
        self._send(instruction.peer, {}, instruction)

    def _receive(
        self, peer: int, instruction: do.Instruction, micro_batch: int = 0, chunk: int = 0
    ) -> dict[str, Tensor]:
        receiver = self.links.receivers[peer]
        self._wait(receiver, "starved")
        # On CUDA the stream, and not this process, waits here for what the sender has queued.
        kind = "starved" if self.device.type == "cuda" else "transfer"
        with self.recorder.working(kind, instruction):
            header, tensors = receiver.receive()
            expected = Header(self._current(), micro_batch, chunk)
            assert header == expected, f"expected {expected} from stage {peer}, got {header}"
            if peer < self.index:
                self.links.pulse.received += 1
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _send(
        self,
        peer: int,
        tensors: Mapping[str, Tensor],
        instruction: do.Instruction,
        micro_batch: int = 0,
        chunk: int = 0,
    ) -> None:
        sender = self.links.senders[peer]
        self._wait(sender, "blocked")
        with self.recorder.working("transfer", instruction):
            sender.send(Header(self._current(), micro_batch, chunk), tensors)
        if peer > self.index:
            self.links.pulse.sent += 1

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
        with self.recorder.working("compute", instruction):
            self.stage.forward(self.stage.chunks[instruction.chunk], instruction.micro_batch)

    def _local_update(self, instruction: do.LocalUpdate) -> None:
        self._local_backward(instruction)
        self._local_step(instruction)

    def _local_backward(self, instruction: do.LocalUpdate | do.LocalBackward) -> None:
        chunk = self.stage.chunks[instruction.chunk]
        kind = "auxiliary" if chunk.auxiliary else "compute"
        with self.recorder.working(kind, instruction):
            outputs = self.stage.local_loss(chunk, instruction.micro_batch)
        with self.recorder.working("compute", instruction):
            self.stage.local_backward(chunk, instruction.micro_batch, outputs)

    def _local_step(self, instruction: do.LocalUpdate | do.LocalStep) -> None:
        with self.recorder.working("optimizer", instruction):
            self.stage.local_step(self.stage.chunks[instruction.chunk])

    def _start_average(self, instruction: do.StartAverage) -> None:
        with self.recorder.working("average", instruction):
            self.stage.start_average(self.stage.chunks[instruction.chunk])

    def _finish_average(self, instruction: do.FinishAverage) -> None:
        # As with channels: whoever is late is seen by the parent, and so this may take for ever.
        self.links.pulse.begin(str(instruction), None)
        with self.recorder.working("average", instruction):
            self.stage.finish_average(self.stage.chunks[instruction.chunk])

    def _loss(self, instruction: do.Loss) -> None:
        with self.recorder.working("compute", instruction):
            self.stage.loss(self.stage.chunks[instruction.chunk], instruction.micro_batch)

    def _backward(self, instruction: do.Backward) -> None:
        gradients = self._gradients.pop(instruction.micro_batch, {})
        with self.recorder.working("compute", instruction):
            self.stage.backward(instruction.micro_batch, gradients)

    def _add_norms(self, instruction: do.AddNorms) -> None:
        before = self._norms if self.index > 0 else None
        with self.recorder.working("optimizer", instruction):
            self._norms = self.stage.add_norms(before)

    def _step(self, instruction: do.Step) -> None:
        with self.recorder.working("optimizer", instruction):
            self.stage.step(self._norms)
        self._norms = None

    def _measure(self, instruction: do.Measure) -> None:
        assert isinstance(self.item, EvaluationBatch)
        chunk = self.stage.chunks[instruction.chunk]
        self.stage.measure(chunk, instruction.micro_batch, self.item.split)

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
        file = checkpoint.save_stage(self.job.run_dir, mark.step, self.index, self.stage.tensors())
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
        return {
            "batches": totals.batches,
            "samples": totals.samples,
            "wall_s": totals.wall_s,
            "spent_s": dict(totals.spent_s),
            "instruction_s": dict(totals.instruction_s),
            "bytes_sent": {peer: end.bytes_sent for peer, end in self.links.senders.items()},
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
        chunks, replicas = self.stage.chunks, self.links.replicas
        self.reports.take(split, step, epoch, chunks, replicas, self.device)

    def _settle(self) -> None:
        """Wait for the device, which a mark does anyway, and report all that it has done."""
        self.reports.send(wait=True)
        self.recorder.settle()
