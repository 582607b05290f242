"""Makes a run's schedule from its configuration."""

from collections.abc import Mapping
from typing import Any

from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.names import class_path
from ppll_cli.pipeline.schedule import Schedule


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Make a schedule from its configuration, and check it: the class may be the user's own.

    Raises:
        ConfigError: The class cannot be imported, does not accept its arguments, or is not a
            Schedule; or an attribute has a wrong type or value.
    """
    key, path = "schedule._target_", config.get("_target_")
    schedule = make("schedule", config)
    if not isinstance(schedule, Schedule):
        raise ConfigError(key, path, "is not a Schedule", f"derive it from {class_path(Schedule)}")
    for name in ("local", "one_stage", "splits"):
        if not isinstance(value := getattr(schedule, name), bool):
            problem = f"its attribute {name!r} must be True or False, not {value!r}"
            raise ConfigError(key, path, problem)
    count: object = getattr(schedule, "microbatches", None)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        problem = "its attribute 'microbatches' must be a whole number of at least 1, "
        problem += f"not {count!r}"
        remedy = "if it has a constructor of its own, call super().__init__(microbatches=...) there"
        raise ConfigError(key, path, problem, remedy)
    return schedule
