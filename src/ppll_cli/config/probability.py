"""Checks options of models that are probabilities. Imports no torch."""

from ppll_cli.errors import ConfigError


def check_probability(key: str, value: object) -> None:
    """Refuse a value that is no number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(key, value, "must be a valid number", "give 0 <= p < 1")
    if not 0 <= value < 1:
        raise ConfigError(key, value, "is not a probability below 1", "give 0 <= p < 1")
