"""Names the keys of the lines in `metrics.jsonl`. Imports no torch."""

LAST_STEP = {"lr", "grad_norm"}
"""Keys whose values in a training line belong to one step only, the last step of the line."""

CONDITIONS = {"step", "epoch", "split", "module", "stage", "samples_per_second", "seconds"}
CONDITIONS |= LAST_STEP
"""Keys of a line that are neither the loss nor a score."""

LINE_KEYS = CONDITIONS | {"loss"}
"""Names that a task may not give to its scores, because a line has these keys for other values."""
