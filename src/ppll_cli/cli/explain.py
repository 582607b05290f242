"""Turns exceptions of Hydra and OmegaConf into this program's one-line errors."""

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ppll_cli.cli.overrides import RUN_DIR, SWEEP_DIR, is_override, is_sweep
from ppll_cli.config.commands import (
    SEARCH_PATH,
    command,
    key_of,
    pip_install,
    search_path,
    setting,
    word,
)
from ppll_cli.config.composition import CONFIG, options_given
from ppll_cli.config.moved import OPTIONS
from ppll_cli.config.options import conf_dir
from ppll_cli.config.overrides import parsed
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.names import meant
from ppll_cli.leaves.nested import flat

PLUGINS = {
    ("hydra/launcher", "joblib"): "hydra-joblib-launcher",
    ("hydra/launcher", "submitit_local"): "hydra-submitit-launcher",
    ("hydra/launcher", "submitit_slurm"): "hydra-submitit-launcher",
    ("hydra/sweeper", "optuna"): "hydra-optuna-sweeper",
}
"""The package to install for each option of Hydra's own groups (see docs/sweeps.md)."""


def explain(error: Exception, arguments: Sequence[str], program: str = "ppll-run") -> ConfigError:
    """Return the error that the user sees when the configuration cannot be composed.

    Args:
        error: The exception. A ConfigError is returned unchanged. If another exception has a
            `__cause__`, the message describes the cause.
        arguments: The arguments of the command line, or the overrides of a job.
        program: Name of the program whose `--help` the message suggests.
    """
    if isinstance(error, ConfigError):
        return error
    cause = error.__cause__ or error
    message = " ".join(str(cause).split())
    if isinstance(cause, OverrideParseException):
        return _no_override(cause, command(program, "--help"))
    options = _Options.of(arguments)
    given = options.given
    if isinstance(cause, OSError) and cause.errno is not None:
        return _no_place(cause, given, SWEEP_DIR if is_sweep(arguments) else RUN_DIR)
    if option := re.search(r"Could not find '([^']*)'", message):
        named = [(k, v) for k, v in given.items() if f"{k}/{v}" == option[1]]
        group, name = named[0] if named else option[1].rsplit("/", 1)
        return _no_option(group, name, options)
    if "Config group override must be" in message:
        for key, value in given.items():
            if (conf_dir() / key).is_dir() and value not in options.names(key):
                return _no_option(key, value, options)
    if unknown := re.search(r"is not in struct full_key: (\S*)", message):
        key = next((key for key in given if f"{key}.".startswith(f"{unknown[1]}.")), unknown[1])
        return _no_key(key, options)
    if deleted := re.search(r"Could not delete from config\. '(\S*)' does not exist", message):
        key = deleted[1]
        if key not in options.all_keys():
            return _no_key(key, options)
        return ConfigError(f"~{key}", "", "its value is null, so there is nothing to delete")
    for more in (" See https://", " Config search path:"):
        message = message.partition(more)[0]
    problem = message.partition(" full_key:")[0]
    for key, value in given.items():
        if key and key in message:
            return ConfigError(key, value, problem)
    remedy = f"see {command(program, '--help')}"
    if any(each.startswith(("-cp", "--config-path")) for each in arguments):
        remedy = "leave --config-path out: --config-dir=FOLDER adds a folder of configurations"
    return ConfigError("arguments", " ".join(arguments), problem, remedy)


def refuse_arguments(_: object, message: str) -> NoReturn:
    """Refuse a command line that Hydra's argument parser cannot read.

    It replaces the method `error` of `argparse.ArgumentParser`, which would end the program.

    Raises:
        ConfigError: Always.
    """
    remedy = f"see {command('ppll-run', '--help')}"
    if message.startswith("unrecognized"):
        remedy = f"keys are given as KEY=VALUE, without dashes; {remedy}"
    raise ConfigError("arguments", " ".join(sys.argv[1:]), message, remedy)


def _no_override(error: OverrideParseException, ask_help: str) -> ConfigError:
    key, _, value = error.override.partition("=")
    found = re.search(
        r"(mismatched|extraneous|no viable).* input '[^']*'|missing EQUAL", str(error.message)
    )
    problem = "Hydra cannot parse this override" + (f": {found[0]}" if found else "")
    if not key or not value or value.startswith(("[", "{")):
        return ConfigError("arguments", error.override, problem, f"see {ask_help}")
    example = word(setting(key, value))
    remedy = f"quote text with such characters twice, for Hydra and for the shell: {example}"
    return ConfigError(key, value, problem, remedy)


def _no_place(error: OSError, given: Mapping[str, str], usual: str) -> ConfigError:
    remedy = f"give {usual}=FOLDER with a folder that you can write to"
    if given.get("resume", "null") != "null":
        usual, remedy = "resume", "make this folder writable, because the run continues there"
    if error.filename is None:  # a write failed, for example because the disk is full
        problem = f"Hydra cannot write into this folder: {error.strerror}"
        return ConfigError(usual, given.get(usual, ""), problem, remedy)
    place = str(error.filename)
    key = next((key for key, value in given.items() if value == place), usual)
    value = given.get(key, place)
    problem = str(error.strerror) if value == place else f"{place}: {error.strerror}"
    return ConfigError(key, value, problem, remedy)


@dataclass(frozen=True)
class _Options:
    given: Mapping[str, str]  # the value of each override as text, by key
    folders: Sequence[Path]  # the user's folders of options

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Self:
        overrides = [argument for argument in arguments if is_override(argument)]
        given = {key_of(override): override.partition("=")[2] for override in overrides}
        searched = [override for override in overrides if key_of(override) == SEARCH_PATH]
        options = [option.partition("=") for option in options_given(arguments)]
        names = [value for option, _, value in options if option == "--config-dir"]
        with suppress(OverrideParseException):
            for override in parsed(searched):
                places = override.value()
                if isinstance(places, list):
                    names += [str(place).removeprefix("file://") for place in places]
        return cls(given, [Path(name).resolve() for name in names if name])

    @property
    def places(self) -> list[Path]:
        return [conf_dir(), *self.folders]

    def names(self, group: str) -> list[str]:
        return sorted({path.stem for at in self.places for path in (at / group).glob("*.yaml")})

    def with_key(self, group: str, key: str) -> list[str]:
        found = []
        for path in (path for at in self.places for path in sorted((at / group).glob("*.yaml"))):
            text = path.read_text("utf-8", errors="replace")
            indented = "  " if "@package _global_" in text else ""
            if re.search(rf"^{indented}{re.escape(key)}:", text, re.MULTILINE):
                found.append(path.stem)
        return found

    def all_keys(self) -> list[str]:
        chosen = [f"{key}={value}" for key, value in self.given.items() if value in self.names(key)]
        if self.folders:
            chosen.append(search_path(self.folders))
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            try:
                config = compose(CONFIG, chosen)
            except (HydraException, OmegaConfBaseException):
                config = compose(CONFIG)
        settings: Any = OmegaConf.to_container(config, resolve=False)
        paths = [key.split(".") for key in flat(settings)]
        return list(dict.fromkeys(".".join(p[:n]) for p in paths for n in range(1, len(p) + 1)))


def _no_option(group: str, name: str, options: _Options) -> ConfigError:
    if package := PLUGINS.get((group, name)):
        problem = "this plugin of Hydra is not installed"
        return ConfigError(group, name, problem, pip_install(package))
    if now := OPTIONS.get((group, name)):
        return ConfigError(group, name, "there is no such option any more", f"use {group}={now}")
    names = options.names(group)
    remedy = f"there are {', '.join(names)}" if names else "there are none"
    if len(names) == 1:
        remedy = f"the only one is {names[0]}"
    if not options.folders:
        remedy += "; for an option of your own give --config-dir=FOLDER"
    return ConfigError(group, name, "there is no such option", meant(name, names) + remedy)


def _no_key(key: str, options: _Options) -> ConfigError:
    keys = options.all_keys()
    group, _, name = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == group]
    elsewhere = [k for k in keys if k.endswith(f".{name}")]
    remedy = f"{command('ppll-run', '--cfg', 'job')} shows all keys"
    has = f"{group} has {', '.join(beside)}"
    if beside and group and (others := options.with_key(group, name)):
        remedy = f"it is a key of {', '.join(f'{group}={each}' for each in others)}; {has}"
    elif near := meant(name, beside):
        remedy = near.replace("mean ", f"mean {group}." if group else "mean ", 1) + remedy
    elif elsewhere:
        remedy = f"did you mean {' or '.join(elsewhere)}? {remedy}"
    elif group and beside:
        remedy = has
    else:
        remedy = meant(key, keys) + remedy
    value = options.given.get(key, "")
    return ConfigError(key, value, "there is no such key", remedy)
