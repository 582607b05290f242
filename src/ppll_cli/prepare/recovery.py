"""Decides whether a worker that fails can be started again alone."""

import platform
import sys
from dataclasses import replace

from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.job.job import Job
from ppll_cli.models.trace import Cost
from ppll_cli.transport.channel import message_bytes
from ppll_cli.transport.journal import head_bytes
from ppll_cli.transport.memory import more_room, no_room
from ppll_cli.transport.ring import RingTransport

_SNAPSHOTS = 2
"""Snapshots of a stage at a time: a new one is written before the old one is removed."""

_TOTAL_STORE_ORDER = ("x86_64", "AMD64")
"""Processors on which another process sees stores in the order in which they were made."""


def recovering(job: Job, costs: tuple[Cost, ...], notes: list[str]) -> Job:
    """Return the job with `recovers` set as the group `recover` asks for.

    Args:
        job: The job.
        costs: The cost of each unit and of each auxiliary network.
        notes: A list to which notes for the user are appended if `recover=auto`, or another key of
            the group, changes nothing.

    Raises:
        ConfigError: The configuration says `recover=stage`, which is not possible.
    """
    able = planned(job, costs)
    wanted = job.settings.recover.name
    if wanted == "off":
        for key, value in job.settings.recover.model_dump(exclude_defaults=True).items():
            notes.append(f"recover.{key}={value} changes nothing with recover=off")
    if wanted == "off" or able.recovers:
        return able
    problem, remedy = _obstacle(replace(job, recovers=True), costs)
    if wanted == "stage":
        raise ConfigError("recover", "stage", problem, remedy)
    problem = problem or "it has never run on CUDA, so it must be asked for with recover=stage"
    notes.append(f"recover=auto: a worker that fails ends the run: {problem}")
    return job


def planned(job: Job, costs: tuple[Cost, ...]) -> Job:
    """Return the job with `recovers` set if the group `recover` asks for it, and it is possible."""
    wanted = job.settings.recover.name
    able = replace(job, recovers=True)
    if wanted == "off" or (wanted == "auto" and _on_cuda(job)) or any(_obstacle(able, costs)):
        return job
    return able


def _obstacle(job: Job, costs: tuple[Cost, ...]) -> tuple[str, str]:
    """Return why no worker can be started again alone, and a remedy; empty texts if one can."""
    settings = job.settings
    if not job.local_learning:
        problem = "the stages of this schedule need each other's gradients in every batch"
        return problem, "use schedule=ppll, or recover=off"
    if job.stages == 1:
        return "there is only one stage", "use schedule=ppll with gpus=2 or more, or recover=off"
    if job.replicas > 1:
        return "the replicas of a stage average their gradients", "use replicas=1, or recover=off"
    if len({*job.homes}) > 1:
        return "restarting a single stage works on one machine only", "use recover=off"
    if not isinstance(make("transport", settings.transport), RingTransport):
        return "only transport=ring keeps messages for a replay", "use transport=ring"
    if _on_cuda(job) and not settings.deterministic:
        problem = "on CUDA, a restarted worker may compute other bits than the one before it"
        return problem, "use deterministic=true, or recover=off"
    if sys.platform != "linux" or platform.machine() not in _TOTAL_STORE_ORDER:
        here = f"{platform.system()} on {platform.machine()}"
        return f"it needs Linux on an x86 processor, and this is {here}", "use recover=off"
    sending = [channel.source for channel in job.channels if channel.kind == "activations"]
    if len({*sending}) < len(sending):
        return "a stage sends activations to several chunks", "use schedule=ppll, or recover=off"
    rooms = job.channels.values()
    size = sum(room.slots * (room.size + head_bytes(room.size)) for room in rooms)
    size += _SNAPSHOTS * _state_bytes(job, costs)
    if obstacle := no_room(size, "its channels and snapshots"):
        return obstacle, f"{more_room(size)}, or a smaller recover.every"
    return "", ""


def _on_cuda(job: Job) -> bool:
    return any(device.startswith("cuda") for device in job.devices)


def _state_bytes(job: Job, costs: tuple[Cost, ...]) -> int:
    """Return the size of one snapshot of each stage, in bytes.

    It holds float32 values: each parameter, at most two values of the optimizer for it, its average
    with `optim.ema`, and older versions of units whose weights other stages read.
    """
    values = 3 + (job.settings.optim.ema is not None)
    older = sum(
        watch.lag * message_bytes(job.watched_specs(watcher).values(), 1)
        for watcher, watch in job.routes.watches.items()
    )
    return 4 * values * sum(cost.params for cost in costs) + older
