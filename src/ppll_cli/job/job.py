"""The job: the plain data that describes a run to all its workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppll_cli.config.settings import Settings
from ppll_cli.errors import ConfigError, noted
from ppll_cli.job.course import Course, split_share
from ppll_cli.job.numerics import Numerics
from ppll_cli.job.schedule import schedule_of
from ppll_cli.job.weights import Weights
from ppll_cli.leaves.names import place_name, seat_name
from ppll_cli.leaves.values import InputSpec, ValueSpec
from ppll_cli.local.method import Site
from ppll_cli.models.unit import Unit, units_seeded
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
    """The number of slots of a channel, and the size of each slot in bytes."""

    slots: int
    size: int


class WatchedUnit(NamedTuple):
    """A unit whose weights the loss of an earlier module reads."""

    name: str
    specs: Mapping[str, ValueSpec]  # shape and dtype of each parameter, by name in the unit


class Seat(NamedTuple):
    """Identifies a worker by the numbers of its stage and its replica, both from 0."""

    stage: int
    replica: int = 0


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know about the run.

    Attributes:
        settings: What the user set. Options such as `gpus` and `threads` may be None; `devices` and
            the property `threads` have the values that the program chose.
        local: Options of the local method, with the defaults of its feature bank filled in.
        snapshot_every: A stage takes a snapshot after at most this number of messages on a channel;
            if this is in the middle of a batch, after the batch. 0: no worker is restarted.
    """

    settings: Settings
    local: Mapping[str, Any]
    course: Course
    input_spec: InputSpec
    task: Task
    routes: Routes  # the chunks of the model, and the tensors sent between them
    specs: tuple[Mapping[str, ValueSpec], ...]  # shapes and dtypes of each chunk's inputs, by name
    names: tuple[str, ...]  # names of the units
    features: tuple[ValueSpec, ...]  # shape and dtype of the first output of each unit
    devices: tuple[str, ...]  # devices of the workers, in the order of `seats`
    run_dir: str
    start: int = 0  # number of optimizer steps done before this process
    checkpoint: Path | None = None  # folder from which the run resumes; None: it starts at step 0
    # Like `specs`, but for evaluation batches; None if they are equal to `specs`
    evaluation_specs: tuple[Mapping[str, ValueSpec], ...] | None = None
    homes: tuple[int, ...] = ()  # number of each worker's machine; empty if the run has one machine
    weights: Weights | None = None  # file of initial weights; None: the seed determines all weights
    # Units whose weights are read by losses of earlier modules, by index in the model
    watched: Mapping[int, WatchedUnit] = field(default_factory=dict)
    snapshot_every: int = 0

    @cached_property
    def restartable(self) -> frozenset[int]:
        """The stages whose workers are restarted from their latest snapshots after a failure."""
        return self.inside if self.snapshot_every else frozenset()

    @cached_property
    def inside(self) -> frozenset[int]:
        """The stages that exchange messages only with stages of their own machine."""
        pairs = [
            pair for pair in self.crossing() if len({self.home(Seat(stage)) for stage in pair}) > 1
        ]
        return frozenset(range(self.stages)).difference(*pairs)

    @property
    def replicas(self) -> int:
        """Number of workers of each stage. Each of them computes its share of every batch."""
        return self.settings.replicas

    @property
    def threads(self) -> int:
        """CPU threads of each worker."""
        return self.settings.threads_per_worker

    @property
    def depth(self) -> int:
        """Number of slots of each channel in addition to those that the schedule needs."""
        depth: int = self.settings.transport["depth"]
        return depth

    @cached_property
    def numerics(self) -> Numerics:
        """The precision and determinism of the run's computations."""
        return Numerics(self.settings.precision, self.settings.deterministic)

    @property
    def layout(self) -> Layout:
        """The chunks of the model, each with its units and its stage."""
        return self.routes.layout

    @property
    def local_learning(self) -> bool:
        """Whether modules are trained by local losses."""
        return self.make_schedule().local

    @property
    def stages(self) -> int:
        """Number of stages."""
        return self.layout.stages

    @property
    def seats(self) -> list[Seat]:
        """The stage and replica of every worker, ordered by stage."""
        return [Seat(s, r) for s in range(self.stages) for r in range(self.replicas)]

    def number(self, seat: Seat) -> int:
        """Return a worker's index in `seats`."""
        return seat.stage * self.replicas + seat.replica

    def device(self, seat: Seat) -> str:
        """Return the device of a worker."""
        return self.devices[self.number(seat)]

    def home(self, seat: Seat) -> int:
        """Return the number of a worker's machine."""
        return self.homes[self.number(seat)] if self.homes else 0

    def place_name(self, seat: Seat) -> str:
        """Return a text with a worker's device and, if there are several machines, its machine."""
        return place_name(self.device(seat), self.home(seat), len({*self.homes}))

    def name(self, seat: Seat) -> str:
        """Return the text that names a worker after the word "stage": "1", or "1 replica 0"."""
        return seat_name(seat.stage, seat.replica, self.replicas)

    @property
    def warmup(self) -> int:
        """Number of batches before the steady state; all, if fewer than five are left to train."""
        steps = max(0, self.course.steps - self.start)
        return min(10, steps // 5) if steps >= 5 else steps

    def microbatches(self, samples: int, replica: int = 0) -> list[int]:
        """Return the number of samples of each micro-batch of a replica's share of a batch.

        `samples` is the number of samples of the whole batch.
        """
        microbatches = self.make_schedule().microbatches
        return split_share(samples, microbatches, self.replicas, replica)

    @property
    def microbatch_size(self) -> int:
        """Number of samples of the largest micro-batch."""
        return self.microbatches(self.course.batch_size)[0]

    @property
    def needs_norm(self) -> bool:
        """Whether the norm of the gradient is computed before each step."""
        optim = self.settings.optim
        used = optim.clip_norm is not None or optim.nonfinite == "skip"
        return used or self.settings.log_grad_norm

    def place(self, stage: int, microbatches: int) -> Place:
        """Return the facts about a stage from which a schedule makes its training instructions.

        `microbatches` is the number of micro-batches of a batch, or of a replica's share of it.
        """
        norms = self.needs_norm and not self.local_learning
        return Place(stage, self.routes, microbatches, norms, self.replicas)

    def training(self, stage: int, microbatches: int) -> list[Instruction]:
        """Return the instructions of a stage for one training batch.

        Raises:
            ScheduleError: The schedule's instructions are wrong.
        """
        return self._training[microbatches][stage]

    def evaluation(self, stage: int, batches: int) -> list[Instruction]:
        """Return a stage's instructions for `batches` evaluation batches, computed together."""
        return self._evaluation[batches][stage]

    @cached_property
    def _training(self) -> dict[int, list[list[Instruction]]]:
        # The parent makes the instructions before it pickles the job, so that all workers execute
        # the same ones. In another process, a user's schedule might yield other instructions.
        found, schedule = {}, self.make_schedule()
        for count in sorted(self.microbatch_counts()):
            with noted(f"for {count} micro-batch(es)"):
                places = [self.place(stage, count) for stage in range(self.stages)]
                found[count] = [passes.training(place, schedule) for place in places]
        return found

    @cached_property
    def _evaluation(self) -> dict[int, list[list[Instruction]]]:
        found, schedule = {}, self.make_schedule()
        for count in sorted(self.course.evaluation_counts()):
            with noted(f"for {count} evaluation batch(es)"):
                places = [Place(stage, self.routes, count) for stage in range(self.stages)]
                found[count] = [passes.evaluation(place, schedule) for place in places]
        return found

    def streams(self) -> list[list[Instruction]]:
        """Return the instructions of each stage for a training batch of full size."""
        count = len(self.microbatches(self.course.batch_size))
        return [self.training(stage, count) for stage in range(self.stages)]

    @cached_property
    def halves(self) -> bool:
        """Whether any stage splits a backward into its two halves (inputs first, weights later)."""
        return any(isinstance(each, BackwardInput) for stream in self.streams() for each in stream)

    def microbatch_counts(self) -> set[int]:
        """Return every possible number of micro-batches in a share of a training batch."""
        sizes, replicas = {*self.course.batch_sizes()}, range(self.replicas)
        return {len(self.microbatches(size, replica)) for size in sizes for replica in replicas}

    @cached_property
    def channels(self) -> dict[Channel, Room]:
        """The channels between stages, with the number and the size of their slots.

        Raises:
            DeadlockError: The stages would wait for one another for ever.
            ScheduleError: The schedule's instructions are wrong.
        """
        needed = []
        kinds = {"micro-batch(es)": self._training, "evaluation batch(es)": self._evaluation}
        for kind, found in kinds.items():
            for count, streams in found.items():
                with noted(f"for {count} {kind}"):
                    needed.append(slots_needed(streams))
        slots = most(needed)
        return {
            c: Room(n + self.depth + self.kept(c), self._message_bytes(c)) for c, n in slots.items()
        }

    def kept(self, channel: Channel) -> int:
        """Return how many slots a channel needs to keep messages for a restarted worker.

        It is 0 if neither of the channel's two stages can be restarted.
        """
        if not self.restartable & {channel.source, channel.target}:
            return 0
        # A snapshot that is due in the middle of a batch is taken only after the batch.
        return self.snapshot_every + self._most_batches

    @cached_property
    def _most_batches(self) -> int:
        return max(self.microbatch_counts() | self.course.evaluation_counts())

    def crossing(self) -> dict[tuple[int, int], set[str]]:
        """Return names of the tensors that stages send, by (sending stage, receiving stage).

        Gradient norms are left out.
        """
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
        """Return shape and dtype of the weights that the loss of chunk `watcher` reads, by name."""
        return self.watched[self.routes.watches[watcher].unit].specs

    def carried(self, channel: Channel) -> Mapping[str, ValueSpec]:
        """Return shape and dtype of each tensor in a channel's messages, by the tensor's name.

        Shapes of activations and gradients are without the batch dimension.
        """
        if channel.kind == "norms":
            return {"norms": ValueSpec((len(self.features),), torch.float64)}
        if channel.kind == "weights":
            return self.watched_specs(channel.chunk)
        backward = channel.kind == "gradients"
        route = self.routes.into[channel.chunk + backward]
        specs = self.specs[channel.chunk + backward]
        return {name: specs[name] for name in (route.gradients if backward else route.names)}

    def _message_bytes(self, channel: Channel) -> int:
        specs = [*self.carried(channel).values()]
        if channel.kind in ("norms", "weights"):
            return message_bytes(specs, 1)
        size = message_bytes(specs, self.microbatch_size)
        if channel.kind == "gradients":
            return size
        evaluated = (self.evaluation_specs or self.specs)[channel.chunk]
        whole = [evaluated[name] for name in self.routes.into[channel.chunk].names]
        return max(size, message_bytes(whole, self.course.evaluation_size))

    def make_schedule(self) -> Schedule:
        """Make the schedule from its configuration."""
        return schedule_of(self.settings.schedule)

    def units(self) -> list[Unit]:
        """Make the model from its configuration, and return its units.

        Raises:
            ConfigError: The units differ from those that the model made before the run's start.
        """
        settings = self.settings
        units = list(units_seeded(settings.model, self.input_spec, self.task, settings.seed))
        if (names := tuple(unit.name for unit in units)) != self.names:
            made = (
                f"its units() made {', '.join(names)}, but before the start it made "
                f"{', '.join(self.names)}"
            )
            remedy = "it must always make the same units; for example, do not loop over a set"
            raise ConfigError("model._target_", settings.model["_target_"], made, remedy)
        return units

    def site(self, units: Sequence[Unit]) -> Site:
        """Return what a local method needs to know about the model and its first module.

        `Site.at` returns the same for another module.
        """
        return Site(0, self.layout.modules, units, self.features, self.input_spec, self.task)
