"""`--multirun resume=SWEEP_DIR`: reads which jobs a sweep has, and which have begun or ended.

Do not trust the sweep's `sweep.json`: somebody may have written it to make this program run their
code. It may name a class from outside this project, or have a shell command in a setting of Hydra's
launcher. The program uses these only if the command line repeats them. Imports no torch.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from ppll_cli.config.commands import setting
from ppll_cli.config.composition import composed
from ppll_cli.config.overrides import at, keys, parsed, text
from ppll_cli.config.settings import parse
from ppll_cli.errors import ConfigError
from ppll_cli.launch.resume import OPTION, Recorded, named, recorded
from ppll_cli.leaves.files import problem_of, read_json
from ppll_cli.observe.runs import CONFIG_FILE, SWEEP_FILE, read_run, whole

SWEEP_FORMAT = 1
"""Format number of `sweep.json`."""

BASIC = "basic"
"""Name of Hydra's own sweeper, which knows all jobs before it runs the first job."""

LAUNCHER = re.compile(r"hydra[./]launcher\b|hydra\.sweeper\.max_batch_size$")
"""Matches the keys of overrides that choose and configure Hydra's launcher, which runs the jobs."""

_WHERE = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")
_WORD = re.compile(r"[\w.,:@%+/-]+", re.ASCII)


@dataclass(frozen=True)
class SweptJob:
    """A job of a sweep.

    Attributes:
        number: Number of the job in the sweep, from 0.
        overrides: The overrides of the job, without overrides of Hydra's own keys.
        folder: The run directory of the job.
    """

    number: int
    overrides: Sequence[str]
    folder: Path

    @property
    def began(self) -> bool:
        """Whether the job has recorded its configuration."""
        return os.path.lexists(self.folder / CONFIG_FILE)

    @property
    def status(self) -> str:
        """Status of the job's run: completed, interrupted, failed, running, or missing."""
        run = read_run(self.folder)
        return "missing" if run is None else run.status


@dataclass(frozen=True)
class RecordedSweep:
    """A sweep that is to be resumed, as its folder records it.

    Attributes:
        launcher: The overrides that choose and configure Hydra's launcher, which runs the jobs.
    """

    folder: Path
    jobs: Sequence[SweptJob]
    launcher: Sequence[str]

    def arguments(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides for Hydra that apply to all jobs of the sweep.

        `overrides` are those of the command line. If one of them is about Hydra's launcher, the
        launcher and its settings in `sweep.json` are not used.

        Raises:
            ConfigError: A setting of Hydra's launcher in `sweep.json` could run a command, and
                `overrides` say nothing about the launcher.
        """
        given = [o for o in parsed(overrides) if re.match(r"(hydra|tracker)\b", o.key_or_group)]
        again = any(LAUNCHER.match(override.key_or_group) for override in given)
        if not again:
            _check_launcher(self.launcher)
        launcher = [] if again else self.launcher
        where = setting("hydra.sweep.dir", str(self.folder))
        return [*launcher, *(text(override) for override in given), where]

    def changed(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        choices: Mapping[str, str],
        overrides: Sequence[str],
    ) -> tuple[Recorded | None, dict[str, Any], dict[str, str]]:
        """Return what is needed to resume a job, or to start it if it has not begun.

        Hydra must be initialized.

        Args:
            run_dir: The job's run directory.
            config: The configuration that Hydra composed for the job.
            choices: The chosen option of each group in this configuration.
            overrides: The overrides of the command line.

        Returns:
            The record of the job's run (None if the job has not begun), the configuration to use,
                and the chosen option of each group.

        Raises:
            ConfigError: The record is damaged, or the configuration is wrong. Or the job uses a
                class of the user's own, and `overrides` does not name this class.
        """
        before = None
        if os.path.lexists(run_dir / CONFIG_FILE):
            before = recorded([setting("resume", str(run_dir))])
        else:
            parse(config)
        # Check the classes that sweep.json names, too: somebody may have edited the file.
        known = before or Recorded(run_dir, config, choices)
        again = _for_job(overrides, known.config)
        found, chosen = known.changed(*composed(known.arguments(again)), again)
        if before is None:
            found["resume"] = None
        return before, found, chosen


def recorded_sweep(overrides: Sequence[str]) -> RecordedSweep | None:
    """Return the sweep that `resume=` names on the command line; None if there is no `resume=`.

    Raises:
        ConfigError: The folder holds no sweep that can be resumed, or the command line has an
            override that a resumed sweep cannot have.
    """
    given = {override.key_or_group: override for override in parsed(overrides)}
    found = named(given.get("resume"), "give a sweep's folder")
    if found is None:
        return None
    folder = found.absolute()
    if not os.path.isdir(folder):
        raise ConfigError("resume", folder, "there is no such folder", "give a sweep's folder")
    if not os.path.lexists(folder / SWEEP_FILE) and os.path.lexists(folder / CONFIG_FILE):
        raise ConfigError("resume", folder, "is the folder of a single run", "remove --multirun")
    for override in given.values():
        _check_override(override)
    return read_sweep(folder)


def record_of(
    launcher: Sequence[str], jobs: Sequence[Sequence[str]], folders: Sequence[str | None]
) -> dict[str, Any]:
    """Return the content of a new sweep's `sweep.json`.

    Args:
        launcher: An override that chooses Hydra's launcher, then overrides that configure it.
        jobs: The overrides of each job.
        folders: The run directory of each job, relative to the sweep's folder. None if it is
            outside of this folder, or unknown before Hydra's launcher starts the job.
    """
    name, *settings = launcher
    return {
        "format": SWEEP_FORMAT,
        "sweeper": BASIC,
        "launcher": name.partition("=")[2],
        "launcher_settings": settings,
        "jobs": [list(job) for job in jobs],
        "folders": list(folders),
    }


def inside(name: str) -> bool:
    """Return whether a path is relative and has no `..`, so that it cannot leave a folder."""
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_plain(override: Override) -> bool:
    """Return whether a launcher's setting is harmless: null, a number or a word, but no class."""
    value = override.value()
    if override.key_or_group.endswith("_target_") or override.is_sweep_override():
        return False
    return value is None or isinstance(value, int | float) or bool(_WORD.fullmatch(str(value)))


def _check_override(override: Override) -> None:
    key, value = override.key_or_group, text(override).partition("=")[2]
    if re.match(r"hydra[./]sweeper\b", key):
        problem = "a search chooses jobs by the results of earlier ones, so it cannot be resumed"
        remedy = f"leave this option out: only sweeps of the sweeper {BASIC!r} can be resumed"
        raise ConfigError(key, value, problem, remedy)
    if key in _WHERE or key == "hydra.mode":
        problem, remedy = "a resumed sweep keeps its folder", "leave this option out"
        raise ConfigError(key, value, problem, remedy)
    given = {key: None} if override.is_sweep_override() else dict(keys(key, override.value()))
    if re.match(r"(resume|hydra|tracker)\b", key) or all(k.endswith("._target_") for k in given):
        return
    problem = "the jobs of a resumed sweep keep the overrides that they began with"
    raise ConfigError(key, value, problem, "leave this option out, or resume a single run with it")


def _check_launcher(overrides: Sequence[str]) -> None:
    for override in parsed(overrides[1:]):
        key, _, value = text(override).partition("=")
        if not is_plain(override):
            problem = "is not taken from a sweep's folder, because a launcher may execute it"
            remedy = f"give {' '.join(overrides)} again, together with resume"
            raise ConfigError(key, value, problem, remedy)


def _for_job(overrides: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    # An override that names a user's class permits this class. A job gets the override only if the
    # job's `config` has the class, too.
    found = []
    for override in parsed(overrides):
        key, value = override.key_or_group, override.value()
        if re.match(r"(resume|hydra)\b", key):
            continue
        if re.match(r"tracker\b", key):
            found.append(text(override))
        elif override.is_sweep_override():
            listed = [item.rpartition("=")[2] for item in override.sweep_string_iterator()]
            found += [setting(key, path) for path in listed if path == at(config, key)]
        else:
            found += [setting(k, path) for k, path in keys(key, value) if path == at(config, k)]
    return found


def read_sweep(folder: Path) -> RecordedSweep:
    """Return the sweep that a folder records.

    Raises:
        ConfigError: The folder records no sweep, or a sweep that cannot be resumed.
    """
    try:
        record = read_json(folder / SWEEP_FILE)
    except (OSError, ValueError) as error:
        raise _no_sweep(folder, f"that file cannot be read: {problem_of(error)}") from None
    if not isinstance(record, dict) or (folder / SWEEP_FILE).is_symlink():
        raise _no_sweep(folder, "that file is a link, or not a JSON object")
    if whole(version := record.get("format")) != SWEEP_FORMAT:
        problem = f"its {SWEEP_FILE} has format {version}, "
        problem += f"but this program reads only format {SWEEP_FORMAT}"
        raise ConfigError("resume", folder, problem, "use the version of ppll-run that wrote it")
    if record.get("sweeper") != BASIC:
        problem = (
            f"its sweeper {record.get('sweeper')} is a search, which chooses each job by the "
            "results of earlier ones, so it cannot be resumed"
        )
        raise ConfigError("resume", folder, problem, "resume its runs one by one")
    jobs, folders = record.get("jobs"), record.get("folders")
    if not isinstance(jobs, list) or not isinstance(folders, list) or len(jobs) != len(folders):
        raise _no_sweep(folder, "it does not list jobs and their folders")
    if None in folders:
        problem = "only its launcher knows the folders of its jobs, because of hydra.sweep.subdir"
        raise ConfigError("resume", folder, problem, "resume its runs one by one")
    places = zip(jobs, folders, strict=True)
    found = [_job(folder, n, overrides, name) for n, (overrides, name) in enumerate(places)]
    _check_apart(folder, found)
    return RecordedSweep(folder, found, _launcher(folder, record))


def _job(sweep: Path, number: int, overrides: Any, name: Any) -> SweptJob:
    if not _are_overrides(overrides, r"(?!hydra\b|resume\b)"):
        raise _no_sweep(sweep, f"job {number} has overrides that no job can have")
    if not isinstance(name, str) or not inside(name):
        raise _no_sweep(sweep, f"the folder of job {number} is not inside the sweep's folder")
    folder = sweep / name
    for path in (folder, *folder.parents):
        if path == sweep:
            break
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            problem = f"{path.relative_to(sweep)}, on the path of job {number}, is not a folder"
            raise ConfigError("resume", sweep, problem, "remove it")
    return SweptJob(number, overrides, folder)


def _check_apart(sweep: Path, jobs: Sequence[SweptJob]) -> None:
    # A job may clear its folder, so no other job may have this folder or one inside it.
    folders = [job.folder for job in jobs]
    above = {path for folder in folders for path in folder.parents}
    if len({*folders}) < len(folders) or above & {*folders}:
        problem = "several of its jobs share a folder, or one has its folder inside another's, "
        problem += "because of hydra.sweep.subdir"
        raise ConfigError("resume", sweep, problem, "resume its runs one by one")


def _launcher(sweep: Path, record: Mapping[str, Any]) -> list[str]:
    name, settings = record.get("launcher"), record.get("launcher_settings", [])
    if not isinstance(name, str) or not OPTION.fullmatch(name):
        raise _no_sweep(sweep, "its launcher is not an option")
    if not _are_overrides(settings, LAUNCHER.pattern):
        raise _no_sweep(sweep, "its launcher_settings are not overrides of hydra.launcher.KEY")
    return [f"hydra/launcher={name}", *settings]


def _are_overrides(texts: Any, key: str) -> bool:
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        return False
    try:
        found = parsed(texts)
    except OverrideParseException:
        return False
    # In `KEY@PACKAGE=OPTION`, both names must be allowed.
    names = [name for o in found for name in (o.key_or_group, o.package) if name is not None]
    return all(re.match(key, name) for name in names)


def _no_sweep(folder: Path, reason: str) -> ConfigError:
    problem = f"it holds no {SWEEP_FILE} of a sweep ({reason})"
    remedy = (
        "give a sweep's folder; older versions wrote no such file: resume their runs one by one"
    )
    return ConfigError("resume", folder, problem, remedy)
