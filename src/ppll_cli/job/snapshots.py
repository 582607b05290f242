"""The size of snapshots with `recover=stage`, and how often a stage takes them."""

from math import ceil

from ppll_cli.job.job import Job
from ppll_cli.transport.channel import message_bytes

BUFFERS = 2
"""Number of snapshots that a stage stores: it writes the new snapshot before it drops the old."""

MARGIN = 1.15
"""Factor on the size of snapshots where shared memory must have room for them. `snapshot_bytes`
counts neither buffers, such as the statistics of BatchNorm, and their averages, nor the alignment
of each tensor. The largest such part that we saw is 12 %, of the first stage of a ResNet-32."""

COST = 0.01
"""Largest fraction of a stage's time that snapshots take, if the program chooses their number and
the channels have slots for as many messages."""


def snapshot_bytes(job: Job, stage: int, params: int) -> int:
    """Return the size of one snapshot of a stage, in bytes.

    It holds float32 values: each parameter, what the optimizer keeps for it, its average with
    `optim.ema`, and older versions of units whose weights other modules read. What else it holds is
    little, and not counted; see `MARGIN`.

    `params` is the number of parameters of the units and auxiliary networks.
    """
    optim = job.settings.optim
    kept = 2 if optim.name == "adamw" else int(optim.momentum > 0)
    values = 1 + kept + (optim.ema is not None)
    older = sum(
        watch.lag * message_bytes(job.watched_specs(watcher).values(), 1)
        for watcher, watch in job.routes.watches.items()
        if job.layout.chunks[job.routes.watched(watcher)].stage == stage
    )
    return 4 * values * params + older


def messages_between(snapshot_s: float, message_s: float, most: int) -> int:
    """Return the smallest number of messages for which snapshots take at most `COST` of the time.

    `message_s` is the time from one message to the next, without snapshots. The channels have slots
    for at most `most` messages.
    """
    enough = ceil(snapshot_s / (COST * message_s)) if message_s > 0 else most
    return min(max(1, enough), most)
