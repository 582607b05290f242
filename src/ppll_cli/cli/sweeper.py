"""Replaces Hydra's basic sweeper by one that records its jobs, so that a sweep can be resumed.

Hydra's launcher is the plugin of Hydra that runs the jobs of a sweep.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ppll_cli.cli.explain import explain
from ppll_cli.cli.job import Jobs
from ppll_cli.cli.overrides import check_links, for_each_job
from ppll_cli.config.changes import PRESETS
from ppll_cli.config.commands import SEARCH_PATH, command, setting
from ppll_cli.config.composition import options_given, overrides_of, own_choices
from ppll_cli.config.overrides import keys, parsed
from ppll_cli.config.targets import targets_in
from ppll_cli.errors import ConfigError
from ppll_cli.launch.locks import locked_sweep
from ppll_cli.launch.resume import OPTION
from ppll_cli.launch.sweeps import LAUNCHER, RecordedSweep, inside, is_plain, record_of
from ppll_cli.leaves.files import make_folder, remove
from ppll_cli.observe.runs import CONFIG_FILE, REFUSED_FILE, only_started

log = logging.getLogger(__name__)


class BasicSweeper(basic_sweeper.BasicSweeper):
    """Runs the jobs as Hydra's basic sweeper does, and records them, so that `resume` can be used.

    Args:
        max_batch_size: How many jobs Hydra's launcher gets at a time; None for all.
        params: The setting `hydra.sweeper.params`: by key, the values to sweep over, as text.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        # Hydra may load the base class a second time, and then `super().__init__` would fail.
        self.max_batch_size, self.params = max_batch_size, params or {}

    @classmethod
    def install(cls) -> None:
        """Make Hydra use this class instead of its basic sweeper, in this process."""
        # Hydra loads plugins only from its own packages. But it looks up a plugin's class by name
        # in this dictionary, so an entry can be replaced.
        Plugins.instance().class_name_to_class[f"{basic_sweeper.__name__}.BasicSweeper"] = cls

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs of a new sweep, or the incomplete jobs of a resumed sweep.

        `arguments` has the command line's overrides, without overrides of Hydra's keys.

        Returns:
            Hydra's results of the jobs, in one list for each batch of jobs.

        Raises:
            ConfigError: A job's configuration cannot be composed, a job's folder is not empty, or
                another process runs this sweep.
            OSError: The record of the sweep cannot be written.
        """
        place = str(self.config.hydra.sweep.dir)
        folder = Path(place).absolute()
        # The folder's name may contain a value that jobs override, such as the seed. From here on
        # the name is fixed, so that all jobs use the same folder.
        self.config.hydra.overrides.hydra.append(setting("hydra.sweep.dir", place))
        if (known := Jobs.current.swept) is not None:
            with locked_sweep(folder, begins=False):
                return self._launch(self._left(known))
        jobs = self._listed(arguments)
        configs = [self._composed(number, job) for number, job in enumerate(jobs)]
        folders = [_folder(config) for config in configs]
        record = record_of(self._launcher_overrides(), jobs, folders)
        again = [setting("resume", str(folder)), *self._again(jobs, configs)]
        _check_new(folder, folders)
        make_folder(folder)
        with locked_sweep(folder, begins=True) as file:
            _check_new(folder, folders)  # another sweep may have begun and ended meanwhile
            _write(file, json.dumps(record, indent=2) + "\n")
            OmegaConf.save(self.config, folder / "multirun.yaml")
            Jobs.current.resume_command = _resume_command(*again)
            return self._launch(list(enumerate(jobs)))

    def _listed(self, arguments: Sequence[str]) -> list[list[str]]:
        # Hydra drops quotes inside `choice()`, so jobs get the overrides as the user wrote them.
        given = Jobs.current.overrides
        typed = dict(zip(for_each_job(given), given, strict=True))
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = [*self._parse_config(), *(typed.get(a, a) for a in arguments)]
        (jobs,) = self.split_arguments(parser.parse_overrides(given), None)
        return jobs

    def _composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        loader = self.hydra_context.config_loader
        try:
            config: DictConfig = loader.load_sweep_config(self.config, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            # Name this job's overrides in the error: the command line has the values of all jobs.
            path = loader.get_search_path().get_path()
            own = [at.path for at in path if "command-line" in at.provider]
            why = explain(error, [setting(SEARCH_PATH, own), *overrides])
            problem = f"{why.problem} (job {number} of the sweep)"
            raise ConfigError(why.key, why.value, problem, why.remedy) from None
        with open_dict(config):
            config.hydra.job.num = number
        return config

    def _launcher_overrides(self) -> list[str]:
        name = self.config.hydra.runtime.choices["hydra/launcher"]
        given = parsed(overrides_of(self.config.hydra, "hydra"))
        settings = [
            str(each.input_line)
            for each in given
            if LAUNCHER.match(each.key_or_group) and each.key_or_group != "hydra/launcher"
        ]
        return [setting("hydra/launcher", str(name)), *settings]

    def _left(self, sweep: RecordedSweep) -> list[tuple[int, list[str]]]:
        left = [job for job in sweep.jobs if job.status != "completed"]
        ready = []
        for job in left:
            where = [setting("hydra.sweep.subdir", str(job.folder.relative_to(sweep.folder)))]
            if job.began:
                check_links(job.folder)
                where.append("hydra.output_subdir=null")
            overrides = [*job.overrides, *where]
            _check_options(sweep.folder, job.number, self._composed(job.number, overrides))
            ready.append((job.number, overrides))
        for job in left:
            if not job.began:
                remove(job.folder)
        remove(sweep.folder / REFUSED_FILE)  # jobs that are refused again are recorded again
        given = [o for o in Jobs.current.overrides if not o.startswith(f"{SEARCH_PATH}=")]
        Jobs.current.resume_command = _resume_command(*given)
        total, goes_on = len(sweep.jobs), sum(job.began for job in left)
        told = "%d of the sweep's %d jobs are complete, %d continue, and %d start"
        log.info(told, total - len(left), total, goes_on, len(left) - goes_on)
        return ready

    def _launch(self, jobs: Sequence[tuple[int, list[str]]]) -> list[Any]:
        returned = []
        size = max(1, self.max_batch_size or len(jobs))
        for start in range(0, len(jobs), size):
            numbers, overrides = zip(*jobs[start : start + size], strict=True)
            results = self.launcher.launch(list(overrides), initial_job_idx=_Numbers(numbers))
            for result in results:
                _ = result.return_value  # raises the exception of a job that failed
            returned.append(results)
        return returned

    def _again(self, jobs: Sequence[Sequence[str]], configs: Sequence[DictConfig]) -> list[str]:
        # `resume` does not take from the record: settings of Hydra's launcher that may contain a
        # shell command, the tracker, and the user's classes.
        launcher = self._launcher_overrides()
        again = [] if all(map(is_plain, parsed(launcher[1:]))) else launcher
        trackers = {str(config.hydra.runtime.choices.tracker) for config in configs} - {"none"}
        again += [setting("tracker", name) for name in trackers if len(trackers) == 1]
        classes = _classes(jobs, configs)
        return again + [f"{key}={','.join(paths)}" for key, paths in classes.items()]


class _Numbers(int):
    numbers: tuple[int, ...]

    def __new__(cls, numbers: tuple[int, ...]) -> "_Numbers":
        made = super().__new__(cls, numbers[0])
        made.numbers = numbers
        return made

    def __add__(self, place: int) -> int:
        # Hydra's launcher gives its job i the number `initial_job_idx + i`. But a resumed sweep
        # leaves out complete jobs: after job 3 may come job 7.
        return self.numbers[place]


def _resume_command(*overrides: str) -> str:
    options = options_given(Jobs.current.arguments)
    return command("ppll-run", "--multirun", *options, *overrides)


def _write(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    with open(file, "w", closefd=False) as opened:  # the file stays open and locked
        opened.write(text)
    os.fsync(file)


def _folder(config: DictConfig) -> str | None:
    known = HydraConfig.instance()
    before = known.cfg
    known.set_config(deepcopy(config))  # so that `${hydra:KEY}` has the values of this job
    try:
        name = str(config.hydra.sweep.subdir)
    except OmegaConfBaseException:
        return None  # only Hydra's launcher knows the name
    finally:
        known.cfg = before
    return name if inside(name) else None


def _check_new(folder: Path, names: Sequence[str | None]) -> None:
    for number, name in enumerate(names):
        if name is None or not os.path.isdir(folder / name):
            continue
        if os.path.lexists(folder / name / CONFIG_FILE):
            problem = f"its subfolder {name} has job {number} of another sweep"
            resume = command("ppll-run", "--multirun", setting("resume", str(folder)))
            remedy = f"choose a new folder, or continue that sweep: {resume}"
            raise ConfigError("hydra.sweep.dir", folder, problem, remedy)
        if not only_started(folder / name):
            problem = f"its subfolder {name} is not empty"
            raise ConfigError("hydra.sweep.dir", folder, problem, "choose a new folder")


def _check_options(folder: Path, number: int, config: DictConfig) -> None:
    for group, name in config.hydra.runtime.choices.items():
        # For example, the name `../NAME` would point to a file elsewhere.
        if name is not None and not OPTION.fullmatch(str(name)):
            problem = f"job {number} of this sweep has {group}={name}, which names no option"
            raise ConfigError("resume", folder, problem, "start a new sweep")


def _classes(
    jobs: Sequence[Sequence[str]], configs: Sequence[DictConfig]
) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for overrides, config in zip(jobs, configs, strict=True):
        choices = own_choices(config.hydra.runtime.choices)
        preset = any(choices.get(name, "None") != "None" for name in PRESETS)
        given = {key for o in parsed(overrides) for key, _ in keys(o.key_or_group, o.value())}
        ours = {str(key): config._get_node(key) for key in config if key != "hydra"}
        plain = {k: OmegaConf.to_container(v) for k, v in ours.items() if isinstance(v, DictConfig)}
        for key, path in targets_in(plain):
            # For safety, a resumed sweep imports a user's class only if the command line names it.
            named = key in given or (preset and not path.startswith("ppll_cli."))
            if named and path not in found.setdefault(key, []):
                found[key].append(path)
    return found
