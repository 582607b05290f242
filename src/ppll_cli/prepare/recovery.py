"""Decides whether a worker that fails can be started again alone."""

from dataclasses import replace

from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.job.job import Job
from ppll_cli.models.trace import Cost
from ppll_cli.transport.memory import more_room, no_room
from ppll_cli.transport.ring import RingTransport

_BYTES_PER_PARAMETER = 2 * 3 * 4
"""Two snapshots, as a new one is written before the old one is removed; in each of them float32
values of a parameter and of at most two values of the optimizer."""


def recovering(job: Job, costs: tuple[Cost, ...], notes: list[str]) -> Job:
    """Return the job with `recovers` set as the group `recover` asks for.

    Args:
        job: The job.
        costs: The cost of each unit and of each auxiliary network.
        notes: A list to which a note for the user is appended if `recover=auto` changes nothing.

    Raises:
        ConfigError: The configuration says `recover=stage`, which is not possible.
    """
    wanted = job.settings.recover.name
    if wanted == "off":
        return job
    able = replace(job, recovers=True)
    problem, remedy = _obstacle(able, costs)
    if wanted == "auto" and not problem and "cpu" not in job.devices:
        problem = "it has never run on CUDA, so it must be asked for with recover=stage"
    if not problem:
        return able
    if wanted == "stage":
        raise ConfigError("recover", "stage", problem, remedy)
    notes.append(f"recover=auto: a worker that fails ends the run: {problem}")
    return job


def planned(job: Job, costs: tuple[Cost, ...]) -> Job:
    """Return the job with `recovers` set where the configuration wants it and it is possible.

    A plan has a row for each schedule, and only some schedules can start a worker again alone.
    """
    able = replace(job, recovers=job.settings.recover.name != "off")
    return job if able.recovers and any(_obstacle(able, costs)) else able


def _obstacle(job: Job, costs: tuple[Cost, ...]) -> tuple[str, str]:
    """Return why no worker can be started again alone, and a remedy; empty texts if one can."""
    if not job.local_learning:
        problem = "the stages of this schedule need each other's gradients in every batch"
        return problem, "use schedule=ppll, or recover=off"
    if job.stages == 1:
        return "there is only one stage", "use schedule=ppll with gpus=2 or more, or recover=off"
    if job.replicas > 1:
        return "the replicas of a stage average their gradients", "use replicas=1, or recover=off"
    if len({*job.homes}) > 1:
        return "it works on one machine only", "use recover=off"
    if not isinstance(make("transport", job.settings.transport), RingTransport):
        return "only transport=ring keeps messages for a replay", "use transport=ring"
    sending = [channel.source for channel in job.channels if channel.kind == "activations"]
    if len({*sending}) < len(sending):
        return "a stage sends activations to several chunks", "use schedule=ppll, or recover=off"
    size = sum(room.slots * room.size for room in job.channels.values()) + _state_bytes(costs)
    if obstacle := no_room(size):
        return obstacle, f"{more_room(size)}, or a smaller recover.every"
    return "", ""


def _state_bytes(costs: tuple[Cost, ...]) -> int:
    """Return the size of the snapshots of all stages in bytes."""
    return _BYTES_PER_PARAMETER * sum(cost.params for cost in costs)
