"""Checks the command line before Hydra reads it: overrides, run directory, and `resume=auto`."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ppll_cli.config.changes import PRESETS
from ppll_cli.config.commands import key_of, quoted, setting, word
from ppll_cli.config.composition import CONFIG
from ppll_cli.config.options import conf_dir
from ppll_cli.errors import ConfigError
from ppll_cli.observe.runs import CONFIG_FILE, LOG_FILE, METRICS_FILE, only_started

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

RUN_DIR, SWEEP_DIR = "hydra.run.dir", "hydra.sweep.dir"


def is_override(argument: str) -> bool:
    """Return whether a command-line argument is an override such as `local=dgl`, not an option."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether the arguments of the command ask for a sweep."""
    return bool({"-m", "--multirun"} & {*arguments})


def expand_home(override: str) -> str:
    """Expand `~` if an override names the folder for results; Hydra does not expand it."""
    found = re.fullmatch(r"(hydra\.(?:run|sweep)\.dir)=(['\"]?)(~.*)\2", override)
    return f"{found[1]}={quoted(os.path.expanduser(found[3]))}" if found else override


def without_auto(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Replace `resume=auto`, which lets a user repeat one command until the run is complete.

    If the folder in `hydra.run.dir` has a run, `resume=FOLDER` replaces `resume=auto` and
    `hydra.run.dir`. If it has no run, `resume=auto` is removed, and a new run starts there.

    Raises:
        ConfigError: `resume=auto` is given for a sweep or without `hydra.run.dir`, or the folder's
            name cannot be found out before the run.
        OverrideParseException: Hydra cannot parse an override.
    """
    from ppll_cli.config.overrides import parsed, text

    found = parsed(overrides)
    given = {override.key_or_group: override for override in found}
    if "resume" not in given or given["resume"].value() != "auto":
        return list(overrides)
    if sweep:
        remedy = "remove --multirun, or give the folder of the sweep to resume"
        raise ConfigError("resume", "auto", "is only for a single run", remedy)
    if RUN_DIR not in given:
        remedy = f"add {RUN_DIR}=FOLDER"
        raise ConfigError("resume", "auto", "needs the folder of the run", remedy)
    rest = [text(each) for each in found if each.key_or_group != "resume"]
    name = _named(given[RUN_DIR], rest)
    if name is None:
        problem = "resume=auto cannot find out which folder this is"
        raise ConfigError(RUN_DIR, given[RUN_DIR].value(), problem, "give its name without ${...}")
    folder = Path(name).absolute()
    if not os.path.lexists(folder / CONFIG_FILE):
        return rest
    others = [each for each in rest if key_of(each) != RUN_DIR]
    return [*others, setting("resume", str(folder))]


def for_each_job(overrides: Sequence[str]) -> list[str]:
    """Rewrite a sweep's overrides so that Hydra accepts them.

    An example is `local=dgl,infopro local.hidden=64`. Before it starts the jobs, Hydra composes a
    configuration with the default `local`. It would refuse `local.hidden`, because this default has
    no such key. So the override becomes `local.hidden=choice(64)`, which Hydra uses only in the
    jobs.

    Raises:
        OverrideParseException: Hydra cannot parse an override.
    """
    from hydra.errors import OverrideParseException

    from ppll_cli.config.overrides import parsed, text

    found = parsed(overrides)
    swept = {each.key_or_group for each in found if each.is_sweep_override()}
    given = list(overrides)
    for place, each in enumerate(found):
        group = each.key_or_group.partition(".")[0]
        key, _, value = given[place].partition("=")
        fixed = each.is_delete() or each.is_sweep_override()
        if fixed or group in ("hydra", each.key_or_group) or not swept & {group, *PRESETS}:
            continue
        with suppress(OverrideParseException):  # raised if the value is empty
            (chosen,) = parsed([f"{key}=choice({value})"])
            given[place] = text(chosen)
    return given


def ignored_folder(overrides: Sequence[str], *, sweep: bool) -> str | None:
    """Return a warning if the user names a folder for results that Hydra ignores; else None.

    Hydra ignores `hydra.run.dir` for a sweep, and `hydra.sweep.dir` for a single run. If both are
    given, or if `resume` is given, there is no warning.
    """
    used, ignored = (SWEEP_DIR, RUN_DIR) if sweep else (RUN_DIR, SWEEP_DIR)
    given = {key_of(each): each.partition("=")[2] for each in overrides}
    if ignored not in given or {used, "resume"} & {*given}:
        return None
    when = "with" if sweep else "without"
    return f"{ignored}={given[ignored]} has no effect {when} --multirun; give {used}=FOLDER"


def check_run_dir(overrides: Sequence[str]) -> None:
    """Refuse the folder in `hydra.run.dir` if it is not empty, before Hydra writes into it.

    A folder that has only files of a run that ended before it began to train is not refused. If the
    folder's name cannot be found out yet, do nothing: `Jobs.run` checks the folder later.

    Raises:
        ConfigError: The folder is not empty, or the value of `hydra.run.dir` is not a text.
        OverrideParseException: Hydra cannot parse an override.
    """
    from ppll_cli.config.overrides import parsed

    given = {override.key_or_group: override for override in parsed(overrides)}
    name = _named(given[RUN_DIR], overrides) if RUN_DIR in given else None
    if name is not None and os.path.isdir(name) and not only_started(Path(name)):
        raise occupied(name, "exists and is not empty")


def occupied(folder: str, problem: str) -> ConfigError:
    """Return the error for a run directory that is not empty.

    `problem` continues the message after the folder's name, for example "exists and is not empty".
    """
    remedy = "choose a new folder"
    if os.path.lexists(os.path.join(folder, CONFIG_FILE)):
        remedy += f", or continue its run with {word(setting('resume', folder))}"
    return ConfigError(RUN_DIR, folder, problem, remedy)


def check_links(run_dir: Path) -> None:
    """Refuse to resume a run if its log or its metrics file is a symbolic link.

    The run would append to the file to which the link points.

    Raises:
        ConfigError: One of these files is a link.
    """
    for name in (LOG_FILE, METRICS_FILE):
        if (run_dir / name).is_symlink():
            problem = f"{name} is a symbolic link, so the run would write to another file"
            raise ConfigError("resume", run_dir, problem, "remove the link")


def _named(override: "Override", overrides: Sequence[str]) -> str | None:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ppll_cli.config.overrides import text

    name = override.value()
    if not isinstance(name, str):
        raise ConfigError(RUN_DIR, name, "is not the name of a folder", "give a path")
    if "${" not in name:
        return name
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        # Hydra does not know the folders of --config-dir here, so it may refuse the user's own
        # options. In that case, compose the configuration with this override alone: the names of
        # most run directories depend on no other override.
        for given in (list(overrides), [text(override)]):
            with suppress(HydraException, OmegaConfBaseException):
                return str(compose(CONFIG, given, return_hydra_config=True).hydra.run.dir)
    return None  # only the run itself can resolve the interpolation
