"""Data sets, augmentation, and the batches of a run."""
