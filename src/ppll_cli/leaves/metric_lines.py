"""The keys of the lines in `metrics.jsonl`, and what counts as a number there. Imports no torch."""

LAST_STEP = {"lr", "grad_norm"}
"""Keys in `metrics.jsonl` with values of a single step: the last step that a line covers."""

CONDITIONS = {"step", "epoch", "split", "module", "stage", "samples_per_second", "seconds"}
CONDITIONS |= LAST_STEP
"""Keys in `metrics.jsonl` for everything except the loss and the scores."""

LINE_KEYS = CONDITIONS | {"loss"}
"""Keys in `metrics.jsonl` that are not scores. A task may not give these names to its scores."""


def is_number(value: object) -> bool:
    """Return whether a value is an int or a float. True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)
