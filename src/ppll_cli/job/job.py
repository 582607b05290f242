"""What the workers of a run are given: plain data, the same for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppll_cli.config.settings import Optim
from ppll_cli.config.targets import make
from ppll_cli.job.course import Course, split_share
from ppll_cli.job.numerics import Numerics
from ppll_cli.job.weights import Weights
from ppll_cli.leaves.names import device_name, seat_name
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Site
from ppll_cli.models.unit import ImageSpec, Model, Unit
from ppll_cli.pipeline import passes
from ppll_cli.pipeline.instructions import BackwardInput, Instruction
from ppll_cli.pipeline.layout import Layout
from ppll_cli.pipeline.routes import Routes
from ppll_cli.pipeline.rules import Channel
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.slots import most, slots_needed
from ppll_cli.tasks.task import Task
from ppll_cli.transport.channel import message_bytes


class Room(NamedTuple):
    """How many slots a channel has, and how many bytes each."""

    slots: int
    size: int


class WatchedUnit(NamedTuple):
    """A unit whose weights the loss of an earlier module watches.

    Attributes:
        name: Of the unit.
        specs: Whole shape and dtype of each parameter, by its name inside the unit.
    """

    name: str
    specs: Mapping[str, ValueSpec]


class Seat(NamedTuple):
    """The place of a worker: a stage, and which of its replicas it is, both counted from 0."""

    stage: int
    replica: int = 0


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        model: Configuration of the model's class.
        data: Configuration of the data set's class.
        local: Configuration of the local method's class.
        schedule: Configuration of the schedule's class.
        optim: Settings of the optimizer.
        course: Batches, evaluations and checkpoints.
        image: What the model is built for.
        task: What is learnt.
        routes: The chunks of the model on their stages, and what travels between them.
        specs: For each chunk, what the named tensors that come into it are like.
        features: What the first output of each unit is like.
        depth: Slots of each channel beyond those that the schedule holds.
        devices: The device of each worker, in the order of `seats`.
        threads: CPU threads of each worker.
        seed: Of all that is drawn.
        numerics: How to compute.
        compiled: Networks are compiled by torch.compile.
        progress_limit_s: How long an instruction may take; None for ever.
        run_dir: Where results go.
        traced: Some batches of the steady state are traced, for a timeline.
        start: Optimizer steps that were done before.
        checkpoint: The folder in which their result is; None at step 0.
        evaluation_specs: The same as `specs` in evaluation, where that is something else.
        replicas: How many workers hold each stage, each with its share of every batch.
        sync_batchnorm: BatchNorm sees the shares of all of them.
        recompute: Units keep only their inputs for the backward, which runs them again.
        homes: The machine of each worker, in the order of `seats`; empty: there is only one.
        weights: What units begin with, at step 0, in the place of weights drawn from the seed.
        watched: The units that losses watch, by their index in the model.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    local: Mapping[str, Any]
    schedule: Mapping[str, Any]
    optim: Optim
    course: Course
    image: ImageSpec
    task: Task
    routes: Routes
    specs: tuple[Mapping[str, ValueSpec], ...]
    features: tuple[ValueSpec, ...]
    depth: int
    devices: tuple[str, ...]
    threads: int
    seed: int
    numerics: Numerics
    compiled: bool
    progress_limit_s: float | None
    run_dir: str
    traced: bool = False
    start: int = 0
    checkpoint: Path | None = None
    evaluation_specs: tuple[Mapping[str, ValueSpec], ...] | None = None
    replicas: int = 1
    sync_batchnorm: bool = False
    recompute: bool = False
    homes: tuple[int, ...] = ()
    weights: Weights | None = None
    watched: Mapping[int, WatchedUnit] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Which units make which chunks, on which stages."""
        return self.routes.layout

    @property
    def local_learning(self) -> bool:
        """Whether modules are trained by local losses."""
        return self.make_schedule().local

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return self.layout.stages

    @property
    def seats(self) -> list[Seat]:
        """Of all workers; replicas of a stage are neighbours."""
        return [Seat(s, r) for s in range(self.stages) for r in range(self.replicas)]

    def number(self, seat: Seat) -> int:
        """A worker's number in the order of `seats`."""
        return seat.stage * self.replicas + seat.replica

    def device(self, seat: Seat) -> str:
        """Where a worker computes."""
        return self.devices[self.number(seat)]

    def home(self, seat: Seat) -> int:
        """The machine of a worker."""
        return self.homes[self.number(seat)] if self.homes else 0

    def place_name(self, seat: Seat) -> str:
        """Name the device of a worker and, where there are several, its machine."""
        return device_name(self.device(seat), self.home(seat), len({*self.homes}))

    def name(self, seat: Seat) -> str:
        """What the user is told of where something was."""
        return seat_name(seat.stage, seat.replica, self.replicas)

    @property
    def warmup(self) -> int:
        """Training batches at the start that figures of the steady state leave out.

        Fewer than five batches in all have no steady state.
        """
        steps = max(0, self.course.steps - self.start)
        return min(10, steps // 5) if steps >= 5 else steps

    def microbatches(self, samples: int, replica: int = 0) -> list[int]:
        """Sizes of the micro-batches that a replica makes of its share of a batch."""
        microbatches = self.make_schedule().microbatches
        return split_share(samples, microbatches, self.replicas, replica)

    @property
    def microbatch_size(self) -> int:
        """Samples of the largest micro-batch."""
        return self.microbatches(self.course.batch_size)[0]

    def place(self, stage: int, microbatches: int) -> Place:
        """Where a stage's instructions for a training batch are executed."""
        needed = self.optim.clip_norm is not None or self.optim.nonfinite == "skip"
        norms = needed and not self.local_learning
        return Place(stage, self.routes, microbatches, norms, self.replicas)

    def training(self, stage: int, microbatches: int) -> list[Instruction]:
        """The instructions of a stage for a training batch."""
        return passes.training(self.place(stage, microbatches), self.make_schedule())

    def evaluation(self, stage: int, batches: int) -> list[Instruction]:
        """The instructions of a stage for evaluation batches that come together."""
        return passes.evaluation(Place(stage, self.routes, batches), self.make_schedule())

    def streams(self) -> list[list[Instruction]]:
        """The instructions of each stage for a whole training batch."""
        count = len(self.microbatches(self.course.batch_size))
        return [self.training(stage, count) for stage in range(self.stages)]

    @property
    def halves(self) -> bool:
        """Whether the schedule runs backwards in two halves."""
        return any(isinstance(each, BackwardInput) for stream in self.streams() for each in stream)

    def microbatch_counts(self) -> set[int]:
        """How many micro-batches a batch, or a replica's share of one, may have."""
        sizes, replicas = {*self.course.batch_sizes()}, range(self.replicas)
        return {len(self.microbatches(size, replica)) for size in sizes for replica in replicas}

    @cached_property
    def channels(self) -> dict[Channel, Room]:
        """The channels between stages, and how much each holds.

        Raises:
            DeadlockError: The stages would wait for one another for ever.
            ScheduleError: The schedule's instructions are wrong.
        """
        stages, schedule = range(self.stages), self.make_schedule()
        counts = self.microbatch_counts()
        kinds = [[passes.training(self.place(s, n), schedule) for s in stages] for n in counts]
        for batches in self.course.evaluation_counts():
            places = [Place(stage, self.routes, batches) for stage in stages]
            kinds.append([passes.evaluation(place, schedule) for place in places])
        slots = most(slots_needed(streams) for streams in kinds)
        return {c: Room(n + self.depth, self._message_bytes(c)) for c, n in slots.items()}

    def crossing(self) -> dict[tuple[int, int], set[str]]:
        """What travels between stages: the names, for each sender and receiver."""
        found: dict[tuple[int, int], set[str]] = {}
        chunks = self.layout.chunks
        for number in range(1, len(chunks)):
            before, here, route = chunks[number - 1], chunks[number], self.routes.into[number]
            if before.stage != here.stage:
                found.setdefault((before.stage, here.stage), set()).update(route.names)
                if route.gradients:
                    found.setdefault((here.stage, before.stage), set()).update(route.gradients)
        for watcher, watch in self.routes.watches.items():
            source, target = chunks[self.routes.watched(watcher)].stage, chunks[watcher].stage
            if source != target:
                name = f"weights.{self.watched[watch.unit].name}"
                found.setdefault((source, target), set()).add(name)
        return found

    def watched_specs(self, watcher: int) -> Mapping[str, ValueSpec]:
        """Whole shape and dtype of each parameter that a chunk watches, by its name in the unit."""
        return self.watched[self.routes.watches[watcher].unit].specs

    def _message_bytes(self, channel: Channel) -> int:
        """Bytes of a channel's largest message."""
        samples = self.microbatch_size
        if channel.kind == "norms":
            return message_bytes([ValueSpec((len(self.features),), torch.float64)], 1)
        if channel.kind == "weights":
            return message_bytes(self.watched_specs(channel.chunk).values(), 1)
        if channel.kind == "gradients":
            chunk = channel.chunk + 1
            specs, names = self.specs[chunk], self.routes.into[chunk].gradients
            return message_bytes([specs[name] for name in names], samples)
        names = self.routes.into[channel.chunk].names
        specs = self.specs[channel.chunk]
        size = message_bytes([specs[name] for name in names], samples)
        evaluated = (self.evaluation_specs or self.specs)[channel.chunk]
        other = message_bytes([evaluated[name] for name in names], self.course.evaluation_size)
        return max(size, other)

    def make_schedule(self) -> Schedule:
        """The schedule."""
        schedule: Schedule = make("schedule", self.schedule)
        return schedule

    def units(self) -> list[Unit]:
        """The model's units."""
        model: Model = make("model", self.model)
        return list(model.units(self.image, self.task))

    def site(self, units: Sequence[Unit]) -> Site:
        """Where the first module's auxiliary network stands, given the model's units."""
        return Site(0, self.layout.modules, units, self.features, self.image, self.task)
