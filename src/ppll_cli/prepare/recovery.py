"""Decides whether a failed worker can be restarted alone, and how often stages save their state."""

import platform
import sys
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.job.job import Job, Seat
from ppll_cli.job.snapshots import BUFFERS, MARGIN, snapshot_bytes
from ppll_cli.prepare.subject import Subject
from ppll_cli.transport.journal import head_bytes
from ppll_cli.transport.memory import fits, more_room, no_room, what_is_left
from ppll_cli.transport.ring import RingTransport

USUAL, MOST, FEWEST = 16, 64, 2
"""How many messages a stage may handle between two snapshots, if the program chooses: usually
`USUAL`, up to `MOST` if messages are small compared with the state, and down to `FEWEST` if there
is little shared memory."""

_TOTAL_STORE_ORDER = ("x86_64", "AMD64")
"""Processors on which every process sees writes of another process in the order of the writes."""


def recovering(job: Job, subject: Subject, notes: list[str], machine: int) -> Job:
    """Return the job, with `snapshot_every` set if failed workers are to be restarted alone.

    It is set if the options of the group `recover` ask for restarts, the job allows restarts, and
    this machine has enough shared memory. `machine` is its number. Notes for the user are appended
    to `notes`.

    Raises:
        ConfigError: The run has `recover=stage`, but its workers cannot be restarted alone, or
            shared memory is too small.
    """
    asked = job.settings.recover
    if asked.name == "off":
        for key, value in asked.model_dump(exclude_defaults=True).items():
            notes.append(f"recover.{key}={value} changes nothing with recover=off")
        return job
    obstacle = _obstacle(job)
    if obstacle is None:
        room = _Room.of(job, subject, machine)
        if every := room.every(asked.every):
            if apart := sorted({*range(job.stages)} - job.inside):
                names = " or ".join(f"stage {stage}" for stage in apart)
                why = "ends the run: it exchanges messages with another machine"
                notes.append(f"recover={asked.name}: a failure of {names} {why}")
            if asked.every is None and room.messages:
                wished = room.wished()
                less = "" if every == wished else f" instead of {wished}, because {what_is_left()}"
                told = f"a stage saves its state after at most {every} messages{less}"
                notes.append(f"recover={asked.name}: {told} (recover.every)")
            return replace(job, snapshot_every=every)
        least = room.size(asked.every or FEWEST)
        owner = f"machine {machine}'s" if len({*job.homes}) > 1 else "its"
        remedy = more_room(least) + (", or a smaller recover.every" if asked.every else "")
        obstacle = no_room(least, f"{owner} channels and snapshots") or "", remedy
    problem, remedy = obstacle
    if asked.name == "stage":
        raise ConfigError("recover", "stage", problem, remedy)
    notes.append(f"recover=auto: a worker that fails ends the run: {problem}")
    return job


def planned(job: Job, subject: Subject) -> tuple[Job, str]:
    """Return the job, with `snapshot_every` set as in a run, for a prediction of its speed.

    Also return why workers cannot be restarted; an empty text if they can, or if the user chose
    `recover=off`. Shared memory is not checked, because the run may use other machines.
    """
    asked = job.settings.recover
    if asked.name == "off":
        return job, ""
    if obstacle := _obstacle(job):
        return job, obstacle[0]
    return replace(job, snapshot_every=asked.every or _Room.of(job, subject).wished()), ""


class _Room(NamedTuple):
    """The sizes, in bytes, that decide how much shared memory channels and snapshots need.

    Attributes:
        states: One snapshot of each stage that can be restarted.
        messages: One message of each channel to or from such a stage. Only these channels keep
            messages for a restart.
        least: All channels if `snapshot_every` is 1.
    """

    states: int
    messages: int
    least: int

    @classmethod
    def of(cls, job: Job, subject: Subject, machine: int | None = None) -> "_Room":
        """Compute the sizes for the stages on `machine`, or for all stages if it is None."""
        job = replace(job, snapshot_every=1)
        here = {s for s in range(job.stages) if machine in (None, job.home(Seat(s)))}
        states = 0
        for stage in here & job.restartable:
            params = sum(cost.params for cost in subject.stage_costs(job.layout, stage))
            states += snapshot_bytes(job, stage, params)
        messages = least = 0
        for channel, room in job.channels.items():
            if {channel.source, channel.target} <= here:
                size = room.size + head_bytes(room.size)
                messages += size if job.kept(channel) else 0
                least += room.slots * size
        return cls(states, messages, least)

    def size(self, every: int) -> int:
        """Return the total size of channels and snapshots if `snapshot_every` is `every`."""
        states = ceil(MARGIN * BUFFERS * self.states)
        return states + self.least + (every - 1) * self.messages

    def wished(self) -> int:
        """Return the number of messages between two snapshots if shared memory is not limited.

        With this number, the kept messages take about as much memory as the snapshots. But it is
        at least `USUAL` and at most `MOST`.
        """
        return min(MOST, max(USUAL, BUFFERS * self.states // self.messages))

    def every(self, asked: int | None) -> int:
        """Return the number of messages between two snapshots; 0 if shared memory is too small.

        `asked` is the user's number; None if the program chooses.
        """
        if not self.messages:  # no stage of this machine restarts
            return asked or USUAL
        tried = [asked] if asked else range(self.wished(), FEWEST - 1, -1)
        return next((every for every in tried if fits(self.size(every))), 0)


def _obstacle(job: Job) -> tuple[str, str] | None:
    """Return why no worker of the run can be restarted alone, and a remedy; None if some can."""
    settings = job.settings
    if not job.local_learning:
        problem = "the stages of this schedule need each other's gradients in every batch"
        return problem, "use schedule=ppll, or recover=off"
    if job.stages == 1:
        return "there is only one stage", "use schedule=ppll with gpus=2 or more, or recover=off"
    if job.replicas > 1:
        return "the replicas of a stage average their gradients", "use replicas=1, or recover=off"
    if not job.inside:
        problem = "every stage exchanges messages with another machine"
        return problem, "use more stages on a machine, or recover=off"
    if not isinstance(make("transport", settings.transport), RingTransport):
        return "only transport=ring keeps messages for a replay", "use transport=ring"
    if _on_cuda(job) and settings.recover.name == "auto":
        return "restarts on CUDA are untested, so only recover=stage turns them on", ""
    if _on_cuda(job) and not settings.deterministic:
        problem = "on CUDA, a restarted worker may compute other bits than the one before it"
        return problem, "use deterministic=true, or recover=off"
    if sys.platform != "linux" or platform.machine() not in _TOTAL_STORE_ORDER:
        here = f"{platform.system()} on {platform.machine()}"
        return f"a restart needs Linux on an x86 processor, and this is {here}", "use recover=off"
    sending = [channel.source for channel in job.channels if channel.kind == "activations"]
    if len({*sending}) < len(sending):
        return "a stage sends activations to several chunks", "use schedule=ppll, or recover=off"
    return None


def _on_cuda(job: Job) -> bool:
    return any(device.startswith("cuda") for device in job.devices)
