"""What the workers of a run are given: plain data, the same for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ppll_cli.local.method import Site
from ppll_cli.models.unit import ImageSpec, Model, Unit
from ppll_cli.names import device_name, seat_name
from ppll_cli.partition.layout import Edge, Layout
from ppll_cli.runtime.items import Course, split_share
from ppll_cli.runtime.numerics import Numerics
from ppll_cli.schedules.rules import Channel
from ppll_cli.schedules.schedule import Place, Schedule
from ppll_cli.settings import Optim
from ppll_cli.targets import make
from ppll_cli.tasks.task import Task
from ppll_cli.transport.channel import message_bytes
from ppll_cli.values import ValueSpec


class Room(NamedTuple):
    """How many slots a channel has, and how many bytes each."""

    slots: int
    size: int


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
        local_learning: Whether modules are trained by local losses.
        optim: Settings of the optimizer.
        course: Batches, evaluations and checkpoints.
        image: What the model is built for.
        task: What is learnt.
        layout: Which units make which modules and stages.
        features: What the first output of each unit is like.
        edges: What crosses each cut between stages.
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
        evaluation_edges: What crosses each cut in evaluation, where that is something else.
        replicas: How many workers hold each stage, each with its share of every batch.
        sync_batchnorm: BatchNorm sees the shares of all of them.
        homes: The machine of each worker, in the order of `seats`; empty: there is only one.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    local: Mapping[str, Any]
    schedule: Mapping[str, Any]
    local_learning: bool
    optim: Optim
    course: Course
    image: ImageSpec
    task: Task
    layout: Layout
    features: tuple[ValueSpec, ...]
    edges: tuple[Edge, ...]
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
    evaluation_edges: tuple[Edge, ...] | None = None
    replicas: int = 1
    sync_batchnorm: bool = False
    homes: tuple[int, ...] = ()

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.layout.stages)

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
        """What the user is told of where a worker computes."""
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
        chunks = len(self.layout.chunks(stage))
        needed = self.optim.clip_norm is not None or self.optim.nonfinite == "skip"
        norms = needed and not self.local_learning
        return Place(stage, self.stages, chunks, microbatches, norms, self.replicas)

    def channels(self) -> dict[Channel, Room]:
        """The channels between neighbouring stages, and how much each holds."""
        schedule = self.make_schedule()
        samples = self.microbatch_size
        rooms = {}
        evaluated = self.evaluation_edges or self.edges
        for stage, (edge, other) in enumerate(zip(self.edges, evaluated, strict=True)):
            specs = dict(zip(edge.names, edge.specs, strict=True))
            size = max(
                message_bytes(edge.specs, samples),
                message_bytes(other.specs, self.course.evaluation_size),
            )
            place = self.place(stage + 1, schedule.microbatches)
            slots = schedule.held(place) + self.depth
            rooms[Channel(stage, stage + 1)] = Room(slots, size)
            if not schedule.local:  # of the gradients that travel back, the one in hand is held
                back = [specs[name] for name in edge.gradients]
                rooms[Channel(stage + 1, stage)] = Room(
                    1 + self.depth, message_bytes(back, samples)
                )
        return rooms

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
