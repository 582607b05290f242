"""Turns the `config.json` of older versions into what this version would write. Imports no torch.

If you move a class or rename an option, add a line here, so that older runs can be resumed.
"""

from collections.abc import Mapping
from typing import Any

_SCHEDULES = (
    "bp.BackPropagation",
    "gpipe.GPipe",
    "ll.LocalLearning",
    "one_f_one_b.OneFOneB",
    "pp.NaivePipeline",
    "ppll.PPLL",
)

TARGETS = {
    **{f"ppll_cli.schedules.{name}": f"ppll_cli.pipeline.schedules.{name}" for name in _SCHEDULES},
    "ppll_cli.transport.naive.NaiveTransport": "ppll_cli.transport.queue.QueueTransport",
}
"""Current value of `_target_`, by older value."""

OPTIONS = {
    ("transport", "naive"): "queue",
}
"""Current name of an option, by group and older name."""

ADDED = {"recover": "off"}
"""Groups that records of older runs lack, and the option that describes what these runs did."""

_EVERY = 16
"""Default of `recover.every` in older versions; it is null now."""


def config_now(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an older run as this version would have recorded it."""
    now: dict[str, Any] = _renamed(config)
    recover = now.get("recover")
    if isinstance(recover, dict) and recover.get("name") == "off":
        # With the old default, the run would print a note that `recover.every` has no effect.
        now["recover"] = {k: None if (k, v) == ("every", _EVERY) else v for k, v in recover.items()}
    return now


def choices_now(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that an older run chose, by group, with the options' current names."""
    return {
        group: OPTIONS.get((group, name), name) if isinstance(name, str) else name
        for group, name in choices.items()
    }


def _renamed(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _renamed(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if key == "_target_" and isinstance(value, str):
        return TARGETS.get(value, value)
    return value
