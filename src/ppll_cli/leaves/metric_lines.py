"""Names the keys of the lines in `metrics.jsonl`. Imports no torch."""

LAST_STEP = {"lr", "grad_norm"}
"""Keys of a training line whose values come from the last step alone."""

CONDITIONS = {"step", "epoch", "split", "module", "stage", "samples_per_second", "seconds"}
CONDITIONS |= LAST_STEP
"""Keys of a line that are neither the loss nor a score."""

LINE_KEYS = CONDITIONS | {"loss"}
"""Keys of a line that are no scores. A task may not give these names to its scores."""
