"""Defines what parent and workers share: the job, its sequence of batches, and checkpoints."""
