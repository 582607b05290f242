"""Checks which settings of a run may change when the run is resumed."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ppll_cli.config.overrides import ABSENT, at
from ppll_cli.errors import ConfigError

FREE = {
    "gpus",
    "partition",
    "transport",
    "device",
    "oversubscribe",
    "threads",
    "recompute",
    "recover",
    "tracker",
    "max_steps",
    "max_minutes",
    "progress_limit",
    "timeline",
    "objective",
    "name",
    "tags",
    "eval_every",
    "log_every",
    "log_grad_norm",
    "checkpoint",
    "data.root",
    "data.download",
    "data.loaders",
    "data.cache",
    "data.folders",
}
"""Keys, and groups of keys, that may be changed because they do not change what is trained."""

COMPARED = ("data.folders",)
"""Keys of `FREE` that may be changed only if the run has recorded the identity of its data."""

BOUND = {"transport.wire_dtype"}
"""Keys inside groups of `FREE` that may not be changed, because they change what is trained."""


def check_free(
    key: str,
    override: str,
    value: Any,
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    same_data: bool,
) -> None:
    """Refuse to change a key that changes what is trained, or to remove any key.

    The value is `ABSENT` if the key is removed. `config` and `choices` are those with which the run
    was started. `same_data` says whether the run has recorded the identity of its data.

    Raises:
        ConfigError: The change is not allowed.
    """
    free = any(key == free or key.startswith(free + ".") for free in FREE) and key not in BOUND
    if key in COMPARED and not same_data:
        free = False
    given, before = override.partition("=")[2], at(config, key)
    if key == "epochs" and value is not ABSENT:
        if at(config, "optim.schedule") not in ("cosine", "cosine_by_epoch"):
            return
        raise refused(key, given, before, "and its learning rate depends on it")
    if value is ABSENT or not free:
        raise refused(key, given, choices.get(key, before))


def refused(
    key: str, given: object, before: Any, reason: str = "", free: Iterable[str] = FREE
) -> ConfigError:
    """Return the error for a change that is not allowed; only the keys in `free` may change."""
    return ConfigError(
        key,
        given,
        f"the run was started with {shown(before)}" + (reason and f", {reason}"),
        "keep that value, or start a new run; a resumed run may change " + ", ".join(sorted(free)),
    )


def shown(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if value is ABSENT:
        return "no such key"
    if isinstance(value, str):
        return value
    return json.dumps(value)
