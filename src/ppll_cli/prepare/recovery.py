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
    """Return the job with `snapshot_every` set, if failed workers are to be restarted alone.

    With `recover=off`, or if `recover=auto` and restarts are impossible, the job is unchanged.

    Args:
        job: The job so far; its `settings` have the options of the group `recover`.
        subject: The model, from which the size of snapshots is computed.
        notes: A list to which notes for the user are appended.
        machine: Number of this machine. Its shared memory must be large enough.

    Raises:
        ConfigError: `recover=stage` is set, but workers cannot be restarted alone, or shared memory
            is too small.
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
                why = "ends the run: this stage exchanges messages with another machine"
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
    """Return the job with `snapshot_every` set, for a prediction of the run's speed.

    Unlike `recovering`, this does not check shared memory: the run may use another machine.

    Returns:
        The job; and why workers cannot be restarted, as text. The text is empty if they can, or
            with `recover=off`.
    """
    asked = job.settings.recover
    if asked.name == "off":
        return job, ""
    if obstacle := _obstacle(job):
        return job, obstacle[0]
    return replace(job, snapshot_every=asked.every or _Room.of(job, subject).wished()), ""


class _Room(NamedTuple):
    # Bytes on this machine:
    states: int  # one snapshot of each stage that can be restarted
    messages: int  # one message of each channel that keeps messages for a restart
    least: int  # all channels if `snapshot_every` is 1

    @classmethod
    def of(cls, job: Job, subject: Subject, machine: int | None = None) -> "_Room":
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
        states = ceil(MARGIN * BUFFERS * self.states)
        return states + self.least + (every - 1) * self.messages

    def wished(self) -> int:
        # Between the limits, kept messages take about as much memory as snapshots.
        return min(MOST, max(USUAL, BUFFERS * self.states // self.messages))

    def every(self, asked: int | None) -> int:
        if not self.messages:  # no stage of this machine restarts
            return asked or USUAL
        tried = [asked] if asked else range(self.wished(), FEWEST - 1, -1)
        return next((every for every in tried if fits(self.size(every))), 0)


def _obstacle(job: Job) -> tuple[str, str] | None:
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
        problem = "a restarted worker reads messages again, and only transport=ring keeps them"
        return problem, "use transport=ring, or recover=off"
    if _on_cuda(job) and settings.recover.name == "auto":
        return "restarts on CUDA are untested, so only recover=stage turns them on", ""
    if _on_cuda(job) and not settings.deterministic:
        problem = "on CUDA, a restarted worker may compute results with other last bits than before"
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
