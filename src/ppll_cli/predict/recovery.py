"""What snapshots take with `recover=stage`: their bytes."""

from ppll_cli.job.job import Job
from ppll_cli.transport.channel import message_bytes

BUFFERS = 2
"""Snapshots of a stage at a time: a new one is written before the old one is given up."""


def snapshot_bytes(job: Job, stage: int, params: int) -> int:
    """Return the size of one snapshot of a stage, in bytes.

    It holds float32 values: each parameter, what the optimizer keeps for it, its average with
    `optim.ema`, and older versions of units whose weights other modules read.

    Args:
        job: The job.
        stage: Number of the stage.
        params: Number of parameters of its units and auxiliary networks.
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
