"""Measures how long a model's units take, and predicts the speed of a run from these times."""
