"""Runs one stage, or one replica of it: all its batches, evaluations and checkpoints."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch

from ppll_cli.config.targets import make
from ppll_cli.data.batches import Ahead, batch_maker, split_data
from ppll_cli.data.source import Dataset
from ppll_cli.job import checkpoint, parts
from ppll_cli.job.course import Batch, EvaluationBatch, Item, TrainBatch, split_share
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.learning_rate import learning_rate
from ppll_cli.job.links import Links, upcoming
from ppll_cli.job.numerics import in_force
from ppll_cli.job.pulse import SAVING_LIMIT_S, SCORING_LIMIT_S
from ppll_cli.observe.spans import SHOWN
from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.marks import mark
from ppll_cli.pipeline.schedule import Place
from ppll_cli.transport.order import Moment
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.clock import clock_of
from ppll_cli.worker.interpreter import Interpreter
from ppll_cli.worker.mail import Mail
from ppll_cli.worker.memory import Memory
from ppll_cli.worker.recorder import Recorder
from ppll_cli.worker.reports import Reports
from ppll_cli.worker.snapshots import Progress, Snapshots
from ppll_cli.worker.state import begin_with, restore, tensors_of


class Worker:
    """Executes the instructions of one stage, or of one replica of it.

    Args:
        job: What the run computes.
        seat: The numbers of the worker's stage and replica.
        links: The worker's connections to other workers and to the parent process.
    """

    def __init__(self, job: Job, seat: Seat, links: Links) -> None:
        self.job, self.seat, self.links = job, seat, links
        settings = job.settings
        self.index, self.replica = index, _ = seat
        self.device = torch.device(job.device(seat))
        self.memory = Memory(self.device)  # before the model is built, so that the model counts
        self.schedule = job.make_schedule()
        site = job.site(job.units())
        self.chunks = {
            number: HeldChunk(job, number, site, self.device, links.replicas)
            for number in job.layout.of(index)
        }
        self.snapshots: Snapshots | None = None
        before, unreported = self._restore()
        self.batches = self._make_batches() if 0 in self.chunks else None
        # At most `buffered` batches wait in the channels. Slots that keep messages for a restart
        # count too: a snapshot frees them, and then they can take new messages.
        kept = sum(job.kept(channel) for channel in job.channels if channel.kind == "activations")
        buffered = job.depth * (job.stages - 1) + kept
        clock = clock_of(self.device)
        self.reports = Reports(
            clock,
            job.task,
            self.chunks.values(),
            links.replicas,
            stop=settings.optim.nonfinite == "stop",
            tell=self.report if self.replica == 0 else None,
            show_progress=links.pulse.renew_progress,
        )
        if self.replica == 0:  # the measurements are sums over all replicas
            self.reports.continue_sums(unreported)
        self.recorder = Recorder(
            clock,
            warmup=job.warmup,
            skip=min(buffered, job.course.segment // 2),
            on_steady=self.memory.begin_peak,
            traced=SHOWN + buffered if settings.timeline else 0,
            auxiliary={number for number, chunk in self.chunks.items() if chunk.auxiliary},
        )
        self.recorder.continue_from(before.totals, before.trace)
        self.memory.continue_from(*before.peak)
        self.reports.continue_seconds(before.seconds)
        self.progress = before
        marks: dict[type, Callable[[Any], None]] = {
            do.Evaluate: self._evaluate,
            do.Checkpoint: self._checkpoint,
            do.End: self._end,
        }
        self.mail = Mail(index, links, self.device, self.recorder)
        self.interpreter = Interpreter(job, self.chunks, self.batches, self.mail, marks)

    def _restore(self) -> tuple[Progress, checkpoint.Unreported]:
        job, links = self.job, self.links
        if links.recovery is not None:
            fixed = job.settings.recover.every is not None
            folder = links.recovery.folder
            self.snapshots = Snapshots(folder, job.snapshot_every, fixed, links)
            before = self.snapshots.load(self.chunks)
            links.pulse.sent, links.pulse.received = self.snapshots.messages()
            if before is not None:  # the snapshot is newer than checkpoint and initial weights
                return before, {}
        if job.checkpoint is not None:
            saved, unreported = checkpoint.saved_tensors(job.checkpoint)
            restore(self.chunks.values(), saved)
            return Progress(), unreported
        if job.weights is not None:
            begin_with(self.chunks.values(), job.weights)
        return Progress(), {}

    def _make_batches(self) -> Ahead:
        job, settings = self.job, self.job.settings
        dataset: Dataset = make("data", settings.data)
        size, seed = job.course.batch_size, settings.seed
        batches = batch_maker(dataset, split_data(dataset), size, seed, self.device)
        return Ahead(batches, job.threads, seed, self.device)

    def run(self) -> None:
        """Execute the instructions of all batches and marks until the end of the run."""
        if self.links.groups is not None:
            self.links.groups.open(self.device)
        for end in self.links.ends():
            end.open()
        self.report("ready")
        done = self.progress
        if not done.items:  # else an earlier process has sent the first weights
            self.interpreter.further.upstream.send_ahead()
        links, wait = self.links, self.mail.wait
        for item in upcoming(self.job, self.seat, links, wait, done.items, done.trained):
            self.mail.item = item
            links.pulse.take(str(item))
            self._handle(item)
            done.items += 1
            done.trained += isinstance(item, TrainBatch)
            if self.snapshots is not None and self.snapshots.due and not isinstance(item, do.End):
                self._take_snapshot(self.snapshots)

    def _handle(self, item: Item) -> None:
        if isinstance(item, TrainBatch):
            self._train(item)
            return
        self._end_training()
        if not isinstance(item, EvaluationBatch):
            for chunk in self.chunks.values():
                chunk.use_averages(False)
            self.interpreter.execute(mark(Place(self.index, self.job.routes), item))
        elif self._evaluates(item):
            self.reports.begin(item.split)
            sizes = self.job.course.evaluation_sizes(item)
            batch = Batch(sizes, first_micro_batch=item.batch, averaged=item.averaged)
            self.interpreter.run(self.job.evaluation(self.index, len(sizes)), batch)
            self.links.pulse.started = True

    def _evaluates(self, item: EvaluationBatch) -> bool:
        turn = item.batch // self.job.course.evaluation_batches
        return turn % self.job.replicas == self.replica

    def _train(self, item: TrainBatch) -> None:
        split = partial(split_share, item.samples, self.schedule.microbatches, self.job.replicas)
        shares = [split(replica) for replica in range(self.replica + 1)]
        sizes, before = shares[-1], shares[:-1]
        self.recorder.begin_batch(item.step)
        self.reports.begin("train")
        first = sum(map(len, before)), sum(map(sum, before))
        batch = Batch(sizes, True, item.step, item.samples, *first)
        self.interpreter.run(self.job.training(self.index, len(sizes)), batch)
        self._share_memories()
        self.recorder.end_batch(sum(sizes))
        self.progress.training = True
        done = item.step + 1
        # A restarted worker repeats steps, but the number that it shows must not fall.
        self.links.pulse.step = max(done, self.links.pulse.step)
        self.links.pulse.started = True
        self.links.pulse.spend(self.recorder.counted_s, self.recorder.totals.spent_s)
        if self.job.course.logs_after(done):
            self._report_training(done, complete=True)
            self.reports.begin("train")
        elif done == self.job.course.steps:
            self._report_training(done, complete=False)
        self.reports.send()
        if self.links.replicas is not None and self.job.course.evaluates_after(done):
            # The replicas wait for each other here, before they evaluate different batches. During
            # the evaluation, such a wait could deadlock the stages.
            self._end_training()

    def _share_memories(self) -> None:
        if self.links.replicas is None:
            return
        # Training may read these buffers. `_end_training` copies them too, but only before
        # evaluations and checkpoints. Without this copy, the weights would depend on how often the
        # run evaluates and saves.
        if memories := [buffer for chunk in self.chunks.values() for buffer in chunk.memories]:
            with self.recorder.span("average"):
                self.links.replicas.take_from_first(memories)

    def _end_training(self) -> None:
        if not self.progress.training:
            return
        self.progress.training = False
        self.recorder.end_segment()
        self.reports.pause("train")
        if self.links.replicas is not None:  # the first replica's buffers are evaluated and saved
            self._announce_wait()
            buffers = [b for chunk in self.chunks.values() for b in chunk.buffers]
            self.links.replicas.take_from_first(buffers)

    def _take_snapshot(self, snapshots: Snapshots) -> None:
        self.links.pulse.begin("taking a snapshot", SAVING_LIMIT_S)
        # Queued training must not count as time of the snapshot.
        Moment(self.device).wait()
        with self.recorder.span("snapshot"), snapshots.timed():
            self._save_snapshot(snapshots)

    def _save_snapshot(self, snapshots: Snapshots) -> None:
        self.reports.send(wait=True)  # raises if a loss was not finite
        for chunk in self.chunks.values():
            chunk.use_averages(False)
        now = self.progress
        now.totals, now.trace = self.recorder.so_far(), self.recorder.trace
        now.peak = self.memory.peak(), self.memory.reserved()
        now.seconds = self.reports.seconds()
        snapshots.save(self.chunks, now)

    # Marks

    def _evaluate(self, mark: do.Evaluate) -> None:
        self.links.pulse.begin("scoring", SCORING_LIMIT_S)
        self._report_metrics(mark.split, mark.step, mark.epoch)
        self._settle()

    def _checkpoint(self, mark: do.Checkpoint) -> None:
        self.links.pulse.begin("saving", SAVING_LIMIT_S)
        self._settle()  # raises if a loss was not finite: such a state must not be saved
        if self.links.recovery is not None and mark.step <= self.links.recovery.saved:
            return  # an earlier process has written this file
        self._announce_wait()
        unreported = self.reports.unreported()
        self.links.pulse.begin("saving", SAVING_LIMIT_S)
        self.report("counted", step=mark.step, worker=self._counted())
        if self.replica > 0:  # all replicas have the same state, and the first one saves it
            return
        run_dir, tensors = self.job.run_dir, tensors_of(self.chunks.values())
        file = checkpoint.save_stage(run_dir, mark.step, self.index, tensors, unreported)
        self.report("saved", step=mark.step, epoch=mark.epoch, file=file)

    def _end(self, mark: do.End) -> None:
        if self.progress.reported != mark.step:  # the run stops between two reports
            self._report_training(mark.step, complete=False)
        self._settle()
        self.report(
            "done",
            step=mark.step,
            worker=self._counted(),
            numerics=in_force(self.device),
            trace=self.recorder.trace,
            ahead_s=None if self.links.groups is None else self.links.groups.ahead_s,
        )

    # Reports

    def _counted(self) -> parts.Worker:
        totals, memory = self.recorder.totals, self.memory
        sent: Counter[str] = Counter()
        for channel, end in self.links.senders.items():
            sent[str(channel.target)] += end.bytes_sent
        return {
            "batches": totals.batches,
            "samples": totals.samples,
            "wall_s": totals.wall_s,
            "spent_s": dict(totals.spent_s),
            "instruction_s": {repr(each): s for each, s in totals.instruction_s.items()},
            "bytes_sent": dict(sent),
            "peak_memory_bytes": memory.peak(),
            "peak_reserved_bytes": memory.reserved(),
        }

    def report(self, kind: str, **fields: object) -> None:
        """Send a report to the parent process; the report's fields are plain data."""
        where = {"stage": self.index, "replica": self.replica}
        self.links.parent.send({"kind": kind, "at_s": perf_counter(), **where, **fields})

    def _report_training(self, step: int, complete: bool) -> None:
        course, optim = self.job.course, self.job.settings.optim
        rate = learning_rate(optim, step - 1, course.steps_per_epoch, course.epochs)
        self._report_metrics("train", step, course.epoch_of(step), rate=rate, complete=complete)
        self.progress.reported = step

    def _report_metrics(self, split: str, step: int, epoch: int, **how: Any) -> None:
        self._announce_wait()
        self.reports.take(split, step, epoch, **how)

    def _announce_wait(self) -> None:
        if self.links.replicas is not None:
            self.links.pulse.begin("waiting for the other replicas", None)  # no time limit

    def _settle(self) -> None:
        self.reports.send(wait=True)
        self.recorder.settle()
