"""Predicts what `recover=stage` costs: the time of copies, and memory."""

from collections.abc import Sequence
from math import ceil

from ppll_cli.job.job import Job
from ppll_cli.job.snapshots import BUFFERS, messages_between, snapshot_bytes
from ppll_cli.pipeline.instructions import ReceiveActivations, ReceiveWeights, Step
from ppll_cli.pipeline.rules import receives
from ppll_cli.predict.costs import Source, message_bytes, params_of
from ppll_cli.predict.pace import Times

PIECE = 16 << 20
"""Size in bytes of a timed copy. A snapshot is assumed to be copied at the same speed."""


def with_copies(
    job: Job, profile: Source, sizes: Sequence[int], times: Sequence[Times]
) -> list[Times]:
    """Return `times`, the seconds of each stage's instructions, plus the copies of `recover=stage`.

    If a channel keeps messages for a restart, the receiving stage copies each message. The time of
    a snapshot is divided by the number of batches between two snapshots. This time per batch is
    then divided equally among the stage's optimizer steps.
    """
    if not job.restartable:
        return list(times)
    result = []
    for stage, known in enumerate(times):
        own = dict(known)
        result.append(own)
        for instruction in job.training(stage, len(sizes)):
            received = receives(stage, instruction)
            copied = isinstance(instruction, ReceiveActivations | ReceiveWeights)
            if copied and received and job.kept(received[0]):
                own[instruction] = profile.copy(message_bytes(job, stage, instruction, sizes))
        if stage not in job.restartable:
            continue
        size = snapshot_bytes(job, stage, params_of(job, stage, profile))
        snapshot_s = profile.copy(PIECE) * size / PIECE
        steps = [instruction for instruction in own if isinstance(instruction, Step)]
        messages = job.snapshot_every
        if job.settings.recover.every is None:
            message_s = sum(own.values()) / len(sizes)  # each micro-batch is a message
            messages = messages_between(snapshot_s, message_s, messages)
        batches = ceil(messages / len(sizes))  # a stage takes a snapshot only after a whole batch
        for step in steps:
            own[step] += snapshot_s / batches / len(steps)
    return result


def recovery_bytes(job: Job, profile: Source) -> list[int]:
    """Return, for each stage, the bytes of snapshots and of messages kept for a restart."""
    result = [0] * job.stages
    for stage in job.restartable:
        result[stage] = BUFFERS * snapshot_bytes(job, stage, params_of(job, stage, profile))
    for channel, room in job.channels.items():
        result[channel.target] += job.kept(channel) * room.size
    return result
