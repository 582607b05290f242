"""The parent of a run: it starts the workers, watches them and gathers what they report."""
