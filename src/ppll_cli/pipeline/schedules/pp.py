"""Naive pipeline parallelism, also called model parallelism."""

from ppll_cli.pipeline.schedules.gpipe import GPipe


class NaivePipeline(GPipe):
    """One stage works at a time: GPipe with a single micro-batch.

    ::

        stage 0 | F0 .  .  .  .  B0 S
        stage 1 | .  F0 .  .  B0 S  .
        stage 2 | .  .  F0 B0 S  .  .
    """

    splits = False
