"""Naive pipeline parallelism, also called model parallelism."""

from ppll_cli.pipeline.schedules.gpipe import GPipe


class NaivePipeline(GPipe):
    """GPipe with a single micro-batch, so that only one stage works at a time.

    K = 3 stages (F forward, B backward, S step)::

        stage 0 | F0 .  .  .  .  B0 S
        stage 1 | .  F0 .  .  B0 S  .
        stage 2 | .  .  F0 B0 S  .  .
    """

    splits = False
