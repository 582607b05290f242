"""Names the keys of the lines in `metrics.jsonl`. Imports no torch."""

LAST_STEP = {"lr", "grad_norm"}
"""Keys in `metrics.jsonl` whose values belong to one step, the last step of a training line."""

CONDITIONS = {"step", "epoch", "split", "module", "stage", "samples_per_second", "seconds"}
CONDITIONS |= LAST_STEP
"""Keys in `metrics.jsonl` that are neither the loss nor a score."""

LINE_KEYS = CONDITIONS | {"loss"}
"""Keys in `metrics.jsonl` that are no scores. A task may not give these names to its scores."""
