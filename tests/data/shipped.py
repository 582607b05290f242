"""The options of the program's data sets."""

from functools import cache
from typing import Any

from tests.conftest import compose_config


@cache
def _defaults(data: str) -> dict[str, Any]:
    config, _ = compose_config([f"data={data}"])
    return {key: value for key, value in config["data"].items() if key != "_target_"}


def shipped(data: str, **changes: object) -> dict[str, Any]:
    """Return the options in conf/data of a data set, with changes."""
    return _defaults(data) | changes
