"""Computes how large snapshots are under `recover=stage`, and how often a stage takes them."""

from math import ceil

from ppll_cli.job.job import Job
from ppll_cli.transport.channel import message_bytes

BUFFERS = 2
"""Number of snapshots that a stage stores: it writes a new one before it drops the old one."""

MARGIN = 1.15
"""For each snapshot, the check before the start asks for `MARGIN * snapshot_bytes` bytes.

The additional bytes are for what `snapshot_bytes` does not count: buffers (such as BatchNorm's
statistics), averages of buffers, and padding between tensors. We saw at most 12 % of such bytes, in
the first stage of a ResNet-32. If a model has larger buffers, the check asks for too little memory.
"""

COST = 0.01
"""Largest fraction of a stage's time for snapshots, if the program chooses how often to take them.
If the channels have too few slots for this, snapshots take a larger fraction.
"""


def snapshot_bytes(job: Job, stage: int, params: int) -> int:
    """Return the size of one snapshot of a stage in bytes, without what `MARGIN` is for.

    A snapshot holds float32 values: each parameter, what the optimizer keeps for it, and its
    average if `optim.ema` is set. It also holds older versions of units whose weights other modules
    read. `params` is the number of the stage's parameters, with auxiliary networks.
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
    """Return after how many messages a stage takes its next snapshot.

    This is the smallest number with which snapshots take at most 1 % (`COST`) of the time.

    Args:
        snapshot_s: Seconds for one snapshot.
        message_s: Seconds from one message to the next, without snapshots.
        most: Largest result. The channels have no slots for more messages.
    """
    enough = ceil(snapshot_s / (COST * message_s)) if message_s > 0 else most
    return min(max(1, enough), most)
