"""`resume=RUN_DIR`: what a run was configured with, and what may be another way now.

The configuration comes from the run's own `config.json` alone, and only keys on the command line
count as changes. Of what stands in the folder nothing is executed: a class that is not ours is
taken from the command line. Imports no torch.
"""

import fcntl
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ppll_cli.config.commands import setting, word
from ppll_cli.config.moved import choices_now, config_now
from ppll_cli.config.overrides import ABSENT as _ABSENT
from ppll_cli.config.overrides import at as _at
from ppll_cli.config.overrides import keys as _keys
from ppll_cli.config.overrides import parsed as _parsed
from ppll_cli.config.overrides import text as _text
from ppll_cli.errors import ConfigError
from ppll_cli.launch.record import DIGEST, PATHS, absolute, check_kinds, no_run, read_record
from ppll_cli.observe.runs import CONFIG_FILE, SWEEP_FILE, only_started

log = logging.getLogger(__name__)

GROUPS = (
    "model",
    "data",
    "partition",
    "schedule",
    "local",
    "fba",
    "optim",
    "transport",
    "tracker",
)

FREE = {
    "gpus",
    "partition",
    "transport",
    "device",
    "oversubscribe",
    "threads",
    "recompute",
    "tracker",
    "max_steps",
    "max_minutes",
    "progress_limit",
    "timeline",
    "objective",
    "name",
    "tags",
    "eval_every",
    "checkpoint",
    "data.root",
    "data.download",
    "data.loaders",
    "data.cache",
    "data.folders",
}
"""Keys, and groups of keys, that change nothing in what is trained."""

COMPARED = ("data.folders",)
"""Of these the ones that are free only where a run has recorded what identifies its data."""

BOUND = {"transport.wire_dtype"}
"""Keys of these groups that do."""

NO_TRACKER = "ppll_cli.observe.tracker.NoTracker"

OPTION = re.compile(r"\w[\w-]*([./]\w[\w-]*)*")
"""Names of options; with a path of another kind, Hydra would find a file anywhere."""


@dataclass(frozen=True)
class Recorded:
    """A run that is to go on.

    Attributes:
        run_dir: Its directory.
        config: The configuration that it was started with, resolved.
        choices: The option chosen in each group.
        cuts: Names of the units that start modules 2 to k; None where an older program ran.
        data_sha256: Digest of what identifies its data; None where that was not recorded.
        weights: What was recorded of the weights that it began with; None: the seed's.
        classes: Names of the classes that it learnt; none where they were not recorded.
    """

    run_dir: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    cuts: tuple[str, ...] | None = None
    data_sha256: str | None = None
    weights: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()

    def arguments(self, overrides: Sequence[str]) -> list[str]:
        """What Hydra is to compose: the same options, with the changes on the command line."""
        choices = dict(self.choices)
        if not _names_tracker(overrides):
            choices["tracker"] = "none"
        own = [f"{group}={choices[group]}" for group in GROUPS]
        where = [setting("hydra.run.dir", str(self.run_dir)), "hydra.output_subdir=null"]
        return [*own, *overrides, *where]

    def changed(
        self, composed: Mapping[str, Any], choices: Mapping[str, str], overrides: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The recorded configuration with the changes that the command line asks for.

        Args:
            composed: What Hydra made of `arguments`.
            choices: The option of each group in it.
            overrides: What stood on the command line.

        Raises:
            ConfigError: A change is not possible, or a class is not on the command line.
        """
        config, chosen = self.with_changes(composed, choices, overrides, self._check_free)
        if not _names_tracker(overrides):
            self._tell_of_tracker()
        if (threads := config.get("threads")) != self.config.get("threads"):
            log.warning(
                "threads=%s: sums may be in another order than before, and so have other bits",
                _shown(threads),
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
        """The recorded configuration with the keys that the command line changes.

        Args:
            composed: What Hydra made of `arguments`.
            choices: The option of each group in it.
            overrides: What stood on the command line.
            check: Given a key, its override and its new value, refuses a change that is not
                possible.

        Raises:
            ConfigError: A change is not possible, or a class is not on the command line.
        """
        config = json.loads(json.dumps(self.config))
        chosen = dict(self.choices)
        if not _names_tracker(overrides):
            config["tracker"], chosen["tracker"] = {"_target_": NO_TRACKER}, "none"
        for override in _parsed(overrides):
            key, given = override.key_or_group, override.value()
            if re.match(r"(resume|hydra)\b", key):
                continue
            if key in choices and not isinstance(given, dict):  # an option of a group
                if choices[key] == self.choices.get(key):
                    continue
                if key not in GROUPS:  # it may set any key
                    raise refused(key, given, self.choices.get(key))
                chosen[key] = choices[key]
            for inner in _keys(key, given):
                value, before = _at(composed, inner), _at(self.config, inner)
                if inner.removeprefix("data.") in PATHS or inner == "weights":
                    value = absolute(value)
                if value != before:
                    check(inner, _text(override), value)
                    _set(config, inner, value)
        _check_classes(config, composed)
        return config, chosen

    def _tell_of_tracker(self) -> None:
        """Say how to track the run again: what a folder says sends nothing anywhere by itself."""
        name, path = self.choices["tracker"], str(self.config["tracker"].get("_target_"))
        if path != NO_TRACKER:
            named = name != "none"
            again = setting("tracker", name) if named else setting("tracker._target_", path)
            said = "this run was tracked by %s; add %s to go on there"
            log.info(said, name if named else path, word(again))

    def _check_free(self, key: str, override: str, value: Any) -> None:
        """Refuse a change of what is trained, and to leave out what a run needs."""
        free = any(key == free or key.startswith(free + ".") for free in FREE) and key not in BOUND
        if key in COMPARED and self.data_sha256 is None:
            free = False
        given, before = override.partition("=")[2], _at(self.config, key)
        if key == "epochs" and value is not _ABSENT:
            if _at(self.config, "optim.schedule") not in ("cosine", "cosine_by_epoch"):
                return
            raise refused(key, given, before, "and its learning rate depends on it")
        if value is _ABSENT or not free:
            raise refused(key, given, self.choices.get(key, before))

    def recorded_as(self, key: str) -> Any:
        """What the run was started with, for a message: the option of a group, or a key's value."""
        return self.choices.get(key, _at(self.config, key))


def recorded(overrides: Sequence[str]) -> Recorded | None:
    """The run that `resume=` names on the command line, if it does.

    Raises:
        ConfigError: It is no run, or one of a later program; or something else says where results
            go.
    """
    given = {override.key_or_group: override for override in _parsed(overrides)}
    if "resume" not in given or given["resume"].value() is None:
        return None
    name = str(OmegaConf.create({"resume": given["resume"].value()}).resume)
    if not name:
        raise ConfigError("resume", "''", "names no folder", "give a run directory")
    run_dir = Path(name).expanduser()
    for key in ("hydra.run.dir", "hydra.output_subdir", "hydra.sweep.dir", "hydra.mode"):
        if key in given:
            value = _text(given[key]).partition("=")[2]
            raise ConfigError(key, value, "resume says where results go", "leave it out")
    if not os.path.isdir(run_dir):
        raise ConfigError("resume", run_dir, "there is no such folder", "give a run directory")
    return recorded_in(run_dir)


def recorded_in(run_dir: Path) -> Recorded:
    """The run of a directory.

    Raises:
        ConfigError: It is no run, or one of a later program.
    """
    if any(run_dir.iterdir()) and only_started(run_dir):
        problem = "nothing was trained there: the start-up ended before it wrote config.json"
        remedy = f"start the run anew with its options and hydra.run.dir={run_dir}"
        raise ConfigError("resume", run_dir, problem, remedy)
    if os.path.lexists(run_dir / SWEEP_FILE) and not os.path.lexists(run_dir / CONFIG_FILE):
        problem = "is the folder of a sweep"
        remedy = "add --multirun, or give the folder of one of its runs"
        raise ConfigError("resume", run_dir, problem, remedy)
    record = read_record(run_dir)
    found = _found(run_dir, record)
    check_kinds(run_dir)
    return found


def _found(run_dir: Path, record: dict[str, Any]) -> Recorded:
    """The run that a record tells of."""
    config = config_now({k: v for k, v in record.items() if k not in ("format", DIGEST)})
    choices, cuts = config.pop("choices", None), config.pop("cuts", None)
    data_sha256, weights = config.pop("data_sha256", None), config.pop("weights_used", None)
    if not isinstance(choices, dict):
        raise no_run(run_dir, "that file has no choices")
    choices = choices_now(choices)
    for group in GROUPS:
        choice = choices.get(group)
        if not isinstance(choice, str) or not OPTION.fullmatch(choice):
            raise no_run(run_dir, f"its choice of {group} is no option")
        if not isinstance(config.get(group), dict):
            raise no_run(run_dir, f"it has no settings of {group}")
    if cuts is not None and not _is_list_of_names(cuts):
        raise no_run(run_dir, "its cuts are no names of units")
    if config["tracker"] == {"name": "none"}:  # as it was before trackers were classes
        config["tracker"] = {"_target_": NO_TRACKER}
    cuts = None if cuts is None else tuple(cuts)
    classes = config.pop("classes", [])
    if not _is_list_of_names(classes):
        raise no_run(run_dir, "its classes are no names")
    if not isinstance(weights, dict | None):
        raise no_run(run_dir, "what it says of its weights is no object")
    return Recorded(run_dir.absolute(), config, choices, cuts, data_sha256, weights, tuple(classes))


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Be the only process that runs in a directory; the lock ends with the process.

    Raises:
        ConfigError: Another one does.
    """
    with (run_dir / CONFIG_FILE).open() as file:
        lock(file.fileno(), "resume", run_dir, "another process goes on with this run")
        yield


def lock(file: int, key: str, folder: Path, problem: str) -> None:
    """Lock an open file, until it is closed or the process ends.

    Args:
        file: Its descriptor.
        key: The key that names the folder.
        folder: The folder that the file is in.
        problem: What another process does there, if it holds the lock.

    Raises:
        ConfigError: Another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(key, folder, problem, "wait for its end, or end it") from None
    except OSError as error:  # a file system that has no locks
        log.warning("%s cannot be locked (%s): let only one process run there", folder, error)


def _names_tracker(overrides: Sequence[str]) -> bool:
    return any(re.match(r"tracker\b", each.key_or_group) for each in _parsed(overrides))


def _check_classes(config: Mapping[str, Any], composed: Mapping[str, Any]) -> None:
    """Refuse to import what only the folder names."""
    for key, target in targets(config, ""):
        if _at(composed, key) != target:
            raise ConfigError(
                key,
                target,
                "a class that no option names is not taken from a run directory",
                f"give {key}={target} again on the command line",
            )


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if not isinstance(config.get(part), dict):
            config[part] = {}
        config = config[part]
    config[last] = value


def refused(
    key: str, given: object, before: Any, reason: str = "", free: Iterable[str] = FREE
) -> ConfigError:
    """The error for a change that is not possible.

    Args:
        key: The key.
        given: Its new value.
        before: What the run was started with.
        reason: What else speaks against it.
        free: The keys that may be changed.
    """
    return ConfigError(
        key,
        given,
        f"the run was started with {_shown(before)}" + (reason and f", {reason}"),
        "leave it as it is, or start a new run; free to change are " + ", ".join(sorted(free)),
    )


def _shown(value: Any) -> str:
    """As it is written on a command line."""
    if value is _ABSENT:
        return "no such key"
    if isinstance(value, str):
        return value
    return json.dumps(value)


def targets(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """The class that each `_target_` of a configuration names, with its key."""
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        inner = f"{key}.{name}" if key else str(name)
        if name == "_target_":
            yield inner, str(value)
        else:
            yield from targets(value, inner)
