"""Turns exceptions of Hydra and OmegaConf into this program's one-line errors."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from ppll_cli.cli.overrides import RUN_DIR, is_override, is_sweep
from ppll_cli.config.commands import command, key_of, setting, word
from ppll_cli.config.composition import CONFIG
from ppll_cli.config.moved import OPTIONS
from ppll_cli.config.options import conf_dir
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.names import meant

SWEEP_DIR = "hydra.sweep.dir"


def explain(error: Exception, arguments: Sequence[str], program: str = "ppll-run") -> ConfigError:
    """Return the error that the user sees when the configuration cannot be composed.

    If the exception has a cause, the cause is explained. A ConfigError needs no explanation. The
    message refers to `--help` of the program.
    """
    if isinstance(error, ConfigError):
        return error
    cause = error.__cause__ or error
    message = " ".join(str(cause).split())
    overrides = [argument for argument in arguments if is_override(argument)]
    given = {key_of(override): override.partition("=")[2] for override in overrides}
    if isinstance(cause, OverrideParseException):
        return _no_override(cause, command(program, "--help"))
    if isinstance(cause, OSError) and cause.errno is not None:
        return _no_place(cause, given, SWEEP_DIR if is_sweep(arguments) else RUN_DIR)
    if option := re.search(r"Could not find '([^']*)'", message):
        named = [(k, v) for k, v in given.items() if f"{k}/{v}" == option[1]]
        group, name = named[0] if named else option[1].rsplit("/", 1)
        return _no_option(group, name)
    if "Config group override must be" in message:
        for key, value in given.items():
            if (conf_dir() / key).is_dir() and value not in _options(key):
                return _no_option(key, value)
    if unknown := re.search(r"is not in struct full_key: (\S*)", message):
        key = next((key for key in given if f"{key}.".startswith(f"{unknown[1]}.")), unknown[1])
        return _no_key(key, given.get(key, ""), given)
    if deleted := re.search(r"Could not delete from config\. '(\S*)' does not exist", message):
        key = deleted[1]
        if key not in _keys(given):
            return _no_key(key, given.get(key, ""), given)
        return ConfigError(f"~{key}", "", "its value is null, so there is nothing to delete")
    message = message.partition(" See https://")[0].partition(" Config search path:")[0]
    for key, value in given.items():
        if key and key in message:
            return ConfigError(key, value, message)
    remedy = f"see {command(program, '--help')}"
    return ConfigError("arguments", " ".join(arguments), message, remedy)


def refuse_arguments(_: object, message: str) -> NoReturn:
    """Refuse a command line that Hydra's argument parser cannot read.

    Raises:
        ConfigError: Always.
    """
    remedy = f"see {command('ppll-run', '--help')}"
    if message.startswith("unrecognized"):
        remedy = f"keys are given as KEY=VALUE, without dashes; {remedy}"
    raise ConfigError("arguments", " ".join(sys.argv[1:]), message, remedy)


def _no_override(error: OverrideParseException, ask_help: str) -> ConfigError:
    """Return the error for an override that Hydra cannot parse; usually its value needs quotes."""
    key, _, value = error.override.partition("=")
    found = re.search(
        r"(mismatched|extraneous|no viable).* input '[^']*'|missing EQUAL", str(error.message)
    )
    problem = "Hydra cannot read this" + (f": {found[0]}" if found else "")
    if not key or not value or value.startswith(("[", "{")):
        return ConfigError("arguments", error.override, problem, f"see {ask_help}")
    example = word(setting(key, value))
    remedy = f"quote text with such characters twice, for Hydra and for the shell: {example}"
    return ConfigError(key, value, problem, remedy)


def _no_place(error: OSError, given: Mapping[str, str], usual: str) -> ConfigError:
    """Return the error for a folder or file of results that Hydra could not create or write to.

    `usual` is the key of the folder for results.
    """
    remedy = f"give {usual}=FOLDER with a folder that you can write to"
    if error.filename is None:  # a write failed, for example because the disk is full
        problem = f"Hydra cannot write into it: {error.strerror}"
        return ConfigError(usual, given.get(usual, ""), problem, remedy)
    place = str(error.filename)
    key = next((key for key, value in given.items() if value == place), usual)
    value = given.get(key, place)
    problem = str(error.strerror) if value == place else f"{place}: {error.strerror}"
    return ConfigError(key, value, problem, remedy)


def _no_option(group: str, name: str) -> ConfigError:
    if now := OPTIONS.get((group, name)):
        return ConfigError(group, name, "there is no such option any more", f"use {group}={now}")
    options = _options(group)
    remedy = f"there are {', '.join(options)}" if options else "there are none"
    if len(options) == 1:
        remedy = f"the only one is {options[0]}"
    return ConfigError(group, name, "there is no such option", meant(name, options) + remedy)


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _no_key(key: str, value: str, given: Mapping[str, str]) -> ConfigError:
    """Return the error for an unknown key; it suggests other options or similar keys."""
    keys = _keys(given)
    group, _, name = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == group]
    elsewhere = [k for k in keys if k.endswith(f".{name}")]
    remedy = f"{command('ppll-run', '--cfg', 'job')} shows all keys"
    has = f"{group} has {', '.join(beside)}"
    if beside and group and (others := _options_with(group, name)):
        remedy = f"it is a key of {', '.join(f'{group}={each}' for each in others)}; {has}"
    elif near := meant(name, beside):
        remedy = near.replace("mean ", f"mean {group}." if group else "mean ", 1) + remedy
    elif elsewhere:
        remedy = f"did you mean {' or '.join(elsewhere)}? {remedy}"
    elif group and beside:
        remedy = has
    else:
        remedy = meant(key, keys) + remedy
    return ConfigError(key, value, "there is no such key", remedy)


def _options_with(group: str, name: str) -> list[str]:
    """Return the options of a group that have a key of this name."""
    found = []
    for option in _options(group):
        text = (conf_dir() / group / f"{option}.yaml").read_text("utf-8")
        indented = "  " if "@package _global_" in text else ""
        if re.search(rf"^{indented}{re.escape(name)}:", text, re.MULTILINE):
            found.append(option)
    return found


def _keys(given: Mapping[str, str]) -> list[str]:
    """Return all keys of the configuration, such as `optim.lr`, with the given options chosen."""
    chosen = [f"{k}={v}" for k, v in given.items() if v in _options(k)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose(CONFIG, chosen), resolve=False)
    return list(_walk(config, ""))


def _walk(node: Any, key: str) -> Iterator[str]:
    if key:
        yield key
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _walk(value, f"{key}.{name}" if key else str(name))
