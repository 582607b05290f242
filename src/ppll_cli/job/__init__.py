"""Defines what the parent process and workers share: the job, its batches, and checkpoints."""
