"""Data sets, their augmentation, and the batches that a run makes of them."""
