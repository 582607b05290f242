"""`resume=RUN_DIR`: reads a run's configuration, and applies the changes that are allowed.

The configuration comes from the run's `config.json`; the changes are the overrides on the command
line. Imports no torch.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from ppll_cli.config.commands import setting, word
from ppll_cli.config.composition import GROUPS
from ppll_cli.config.moved import ADDED, choices_now, config_now
from ppll_cli.config.overrides import ABSENT, at, keys, parsed, text
from ppll_cli.config.sections import BY_EPOCHS
from ppll_cli.config.targets import targets_in
from ppll_cli.config.weights import absolute_path
from ppll_cli.errors import ConfigError
from ppll_cli.launch.record import DIGEST, PATHS, absolute, check_kinds, no_run, read_record
from ppll_cli.leaves.files import problem_of
from ppll_cli.observe.runs import CONFIG_FILE, SWEEP_FILE, only_started

log = logging.getLogger(__name__)

NO_TRACKER = "ppll_cli.observe.tracker.NoTracker"

OPTION = re.compile(r"\w[\w-]*([./]\w[\w-]*)*")
"""Matches names of options, but no absolute path and no `..`: Hydra would read a file there."""

UNNAMED = (
    "the run directory names a class that is not part of ppll-run; such a class is imported only "
    "if you give its name"
)

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
"""Keys, and groups of keys, that a resumed run may change: they do not change what is trained."""

COMPARED = ("data.folders",)
"""Keys of `FREE` that are refused if the run did not record the digest of its data.

Without the digest, nothing shows whether a folder has the same data."""

BOUND = {"transport.wire_dtype"}
"""Keys inside groups of `FREE` that a resumed run must not change: they change the training."""


@dataclass(frozen=True)
class Recorded:
    """A run that is to be resumed.

    Attributes:
        config: The configuration with which the run was started, with interpolations resolved.
        choices: The option of each group of the configuration, such as `resnet32` for `model`.
        cuts: Name of the first unit of each module except module 0; None if not recorded.
        data_sha256: SHA-256 that identifies the data (see `data.identity`); None if not recorded.
        weights: Describes the file of initial weights; None if they were drawn from the seed.
        classes: Names of the classes that the run learnt; empty if not recorded.
    """

    run_dir: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    cuts: tuple[str, ...] | None = None
    data_sha256: str | None = None
    weights: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()

    def arguments(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides with which Hydra composes the run again, changed by `overrides`."""
        choices = dict(self.choices)
        if not _names_tracker(overrides):
            choices["tracker"] = "none"
        own = [f"{group}={choices[group]}" for group in GROUPS]
        given = []
        for override in parsed(overrides):
            key, said = override.key_or_group, text(override)
            # When the run was started, `+KEY=CLASS` or a preset may have added a key that the
            # options composed here lack. An override that repeats the class then needs `++`.
            repeats = key.endswith("._target_") and at(self.config, key) == override.value()
            given.append(f"++{said.lstrip('+')}" if repeats else said)
        where = [setting("hydra.run.dir", str(self.run_dir)), "hydra.output_subdir=null"]
        return [*own, *given, *where]

    def changed(
        self, composed: Mapping[str, Any], choices: Mapping[str, str], overrides: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the run's configuration with the user's changes, and the option of each group.

        `composed` and `choices` are what Hydra composed from the overrides that `arguments`
        returned: a configuration, and the option of each group.

        Raises:
            ConfigError: A change is not allowed, or the record has a user's class that no override
                names.
        """
        config, chosen = self.with_changes(composed, choices, overrides, self._check_free)
        if not _names_tracker(overrides):
            self._suggest_tracker()
        if (threads := config.get("threads")) != self.config.get("threads"):
            log.warning(
                "threads=%s: sums may be computed in another order than before, so the weights may "
                "differ in their last bits from those of a run that keeps its threads",
                shown(threads),
            )
        config["resume"] = str(self.run_dir)
        return config, chosen

    def with_changes(
        self,
        composed: Mapping[str, Any],
        choices: Mapping[str, str],
        overrides: Sequence[str],
        check: Callable[[str, str, Any], None],
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Apply and return changes like `changed`, but let `check` decide which are allowed.

        `check` is called with each changed key, its override and its new value. It raises
        ConfigError to refuse the change. Nothing is logged; the key `resume` keeps its old value.
        """
        config = json.loads(json.dumps(self.config))
        chosen = dict(self.choices)
        if not _names_tracker(overrides):
            config["tracker"], chosen["tracker"] = {"_target_": NO_TRACKER}, "none"
        for override in parsed(overrides):
            key, given = override.key_or_group, override.value()
            if re.match(r"(resume|hydra)\b", key):
                continue
            if key in choices and not isinstance(given, dict):  # an option of a group
                if choices[key] == self.choices.get(key):
                    continue
                if key not in GROUPS:  # a preset, which can set any key
                    before = self.choices.get(key)
                    raise refused(key, given, None if before == "None" else before)
                chosen[key] = choices[key]
            for inner, _ in keys(key, given):
                value, before = at(composed, inner), at(self.config, inner)
                if inner.removeprefix("data.") in PATHS:
                    value = absolute(value)
                elif inner == "weights" and isinstance(value, str):
                    value = absolute_path(value)
                if value != before:
                    check(inner, text(override), value)
                    _set(config, inner, value)
        _check_classes(config, composed)
        return config, chosen

    def _suggest_tracker(self) -> None:
        name, path = self.choices["tracker"], str(self.config["tracker"].get("_target_"))
        if path != NO_TRACKER:
            named = name != "none"
            again = setting("tracker", name) if named else setting("tracker._target_", path)
            said = "this run was tracked by %s; add %s to track it there again"
            log.info(said, name if named else path, word(again))

    def _check_free(self, key: str, override: str, value: Any) -> None:
        reason = ""
        free = any(key == name or key.startswith(name + ".") for name in FREE) and key not in BOUND
        if key in COMPARED and self.data_sha256 is None:
            free = False
        elif key == "epochs" and value is not ABSENT:
            free = at(self.config, "optim.schedule") not in BY_EPOCHS
            reason = "and its learning rate depends on the number of epochs"
        if value is ABSENT or not free:
            raise refused(key, override.partition("=")[2], self.recorded_as(key), reason)

    def recorded_as(self, key: str) -> Any:
        """Return a key's value at the start of the run; for a group, the name of its option."""
        return self.choices.get(key, at(self.config, key))


def recorded(overrides: Sequence[str]) -> Recorded | None:
    """Return the run that `resume=` names on the command line; None if there is no `resume=`.

    Raises:
        ConfigError: The folder is no run directory, a later version wrote it, it is damaged, or an
            override such as `hydra.run.dir` is given, which a resumed run cannot have.
    """
    given = {override.key_or_group: override for override in parsed(overrides)}
    run_dir = named(given.get("resume"), "give a run directory")
    if run_dir is None:
        return None
    for key in ("hydra.run.dir", "hydra.output_subdir", "hydra.sweep.dir", "hydra.mode"):
        if key in given:
            value = text(given[key]).partition("=")[2]
            problem, remedy = "a resumed run keeps its directory", "leave this option out"
            raise ConfigError(key, value, problem, remedy)
    return _recorded_in(run_dir)


def refused(
    key: str,
    given: object,
    before: Any,
    reason: str = "",
    free: Iterable[str] = FREE,
    who: str = "a resumed run",
) -> ConfigError:
    """Return the error for a change of `key` from `before` to `given`, which is not allowed.

    The message has the `reason`, if there is one. It says that `who`, for example "a resumed run",
    may change only the keys in `free`.
    """
    problem = f"the run was started with {shown(before)}" + (reason and f", {reason}")
    remedy = f"keep that value, or start a new run; {who} may change {', '.join(sorted(free))}"
    return ConfigError(key, given, problem, remedy)


def shown(value: Any) -> str:
    """Return a value as error messages show it: a string as it is, other plain data as JSON."""
    if value is ABSENT:
        return "no such key"
    return value if isinstance(value, str) else json.dumps(value)


def named(resume: Override | None, remedy: str) -> Path | None:
    """Return the folder that an override `resume=` names; None if there is none or it is null.

    Raises:
        ConfigError: The name is empty (with `remedy` as advice), or there are several folders.
    """
    if resume is None or resume.value() is None:
        return None
    if resume.is_sweep_override():
        value = text(resume).partition("=")[2]
        raise ConfigError("resume", value, "names several folders", "give one")
    name = str(OmegaConf.create({"resume": resume.value()}).resume)
    if not name:
        raise ConfigError("resume", "''", "is empty", remedy)
    return Path(name).expanduser()


def recorded_in(run_dir: Path, key: str) -> Recorded:
    """Read the record of a run from its directory. Errors name the option `key`.

    Raises:
        ConfigError: The folder is no run directory, a later version wrote it, or it is damaged.
    """
    try:
        return _recorded_in(run_dir)
    except ConfigError as error:
        if error.key != "resume":
            raise
        raise ConfigError(key, error.value, error.problem, error.remedy) from None


def _recorded_in(run_dir: Path) -> Recorded:
    if not os.path.isdir(run_dir):
        raise ConfigError("resume", run_dir, "there is no such folder", "give a run directory")
    try:
        started = any(run_dir.iterdir()) and only_started(run_dir)
    except OSError as error:
        problem = f"cannot be read: {problem_of(error)}"
        raise ConfigError("resume", run_dir, problem, "give a run directory") from None
    if started:
        problem = "nothing was trained there: the start-up ended before it wrote config.json"
        remedy = f"start the run again with its options and hydra.run.dir={run_dir}"
        raise ConfigError("resume", run_dir, problem, remedy)
    if os.path.lexists(run_dir / SWEEP_FILE) and not os.path.lexists(run_dir / CONFIG_FILE):
        problem = "is the folder of a sweep"
        remedy = "give one of its runs, or continue the sweep: ppll-run --multirun resume=FOLDER"
        raise ConfigError("resume", run_dir, problem, remedy)
    record = read_record(run_dir)
    found = _found(run_dir, record)
    check_kinds(run_dir)
    return found


def _found(run_dir: Path, record: dict[str, Any]) -> Recorded:
    config = config_now({k: v for k, v in record.items() if k not in ("format", DIGEST)})
    config.pop("lower_is_better", None)
    choices, cuts, classes = (config.pop(key, None) for key in ("choices", "cuts", "classes"))
    data_sha256, weights = config.pop("data_sha256", None), config.pop("weights_used", None)
    if not isinstance(choices, dict):
        raise no_run(run_dir, "that file has no choices")
    choices = {**ADDED, **choices_now(choices)}
    config = {**{group: {"name": option} for group, option in ADDED.items()}, **config}
    for group in GROUPS:
        choice = choices.get(group)
        if not isinstance(choice, str) or not OPTION.fullmatch(choice):
            raise no_run(run_dir, f"its choice of {group} is not an option")
        if not isinstance(config.get(group), dict):
            raise no_run(run_dir, f"it has no settings for {group}")
    for key, names in {"cuts": cuts, "classes": classes}.items():
        if names is not None and not _are_names(names):
            raise no_run(run_dir, f"its {key} are not names")
    if not isinstance(weights, dict | None):
        raise no_run(run_dir, "its record of the weights is not an object")
    if config["tracker"] == {"name": "none"}:  # older programs wrote this
        config["tracker"] = {"_target_": NO_TRACKER}
    cuts, classes = None if cuts is None else tuple(cuts), tuple(classes or ())
    return Recorded(run_dir.absolute(), config, choices, cuts, data_sha256, weights, classes)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _names_tracker(overrides: Sequence[str]) -> bool:
    return any(re.match(r"tracker\b", each.key_or_group) for each in parsed(overrides))


def _check_classes(config: Mapping[str, Any], composed: Mapping[str, Any]) -> None:
    # Somebody else may have written the record, and importing a class executes code.
    for key, target in targets_in(config):
        if at(composed, key) != target:
            remedy = f"give {key}={target} on the command line"
            raise ConfigError(key, target, UNNAMED, remedy)


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if not isinstance(config.get(part), dict):
            config[part] = {}
        config = config[part]
    config[last] = value
