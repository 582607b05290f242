"""Finds how runs differ: in conditions that forbid a comparison, and in settings of a sweep."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from ppll_cli.config.moved import ADDED, choices_now
from ppll_cli.leaves.nested import flat
from ppll_cli.leaves.printable import printable
from ppll_cli.observe.runs import FoundRun, whole

Conditions = Mapping[str, Any]
"""Values that must be equal for two runs to be comparable.

A value is missing if the run has just begun, or if an older version wrote it. Such a run is
comparable to runs with any value.
"""

KEYS = ("batch_size", "epochs", "precision", "compile", "deterministic", "recompute")

LONGEST_VALUE = 200

PLACES = {"root", "download", "cache"}
"""Keys that say where data are stored. They do not change results."""

DIGEST = "data.digest"
"""Key of the data's digest, by which runs with equal settings but different samples differ."""

OWN = {"gpus", "threads", "name", "tags"}  # keys with a column of their own
OWN |= {"resume", "tracker", "objective", "max_minutes", "progress_limit"}
OWN |= {"timeline"}  # like the keys one line above, this key changes no compared value
OWN |= {"format", "sha256", "choices", "cuts", "data_sha256", "weights_used", "classes"}
OWN |= {"lower_is_better"}
"""Keys of `config.json` that are not compared as settings."""

NAMED = OWN | {"schedule"}

LOCAL = ("ll", "ppll")

WHOLE = ("bp", "pp", "gpipe", "1f1b", "interleaved", "zb_h1")
"""Schedules of this program that train the whole model by one loss."""

METHOD = ("local", "fba")
"""Groups of options that only local learning uses."""


def conditions(run: FoundRun) -> Conditions:
    """Return the values that another run must share to be comparable to this run.

    If a resume changed a value, the result has the latest value.
    """
    device, digest = run.recorded("device"), _digest(run)
    found = {
        **{key: run.recorded(key) for key in KEYS},
        **_options(run, "model", PLACES),
        **_options(run, "data", PLACES),
        **({} if digest is None else {DIGEST: digest}),
        "device": None if device == "auto" else device,
        "emulated": run.get("emulated"),
        "steps": run.get("steps") if run.status == "completed" else None,
        "metric": run.metric,
    }
    return _known(found)


def locality(run: FoundRun) -> Conditions:
    """Return a run's settings of local learning, such as its method and its modules.

    They are compared between runs with local losses, in addition to `conditions`.
    """
    modules = run.get("per_module")
    cuts = run.configured("cuts")
    if isinstance(modules, list):
        cuts = [_first_unit(module) for module in modules[1:]]
    found = {
        **_options(run, "local", {"modules", "cuts"}),  # instead, the resulting cuts are compared
        **_options(run, "fba", set()),
        "cuts": cuts,
        "modules": run.get("modules"),
    }
    return _known(found)


def _known(found: Conditions) -> dict[str, Any]:
    # For settings, such as `data.eval_limit`, None is a value. Elsewhere it means unknown.
    return {key: value for key, value in found.items() if value is not None or "." in key}


def _first_unit(module: Any) -> str | None:
    units = module.get("units") if isinstance(module, Mapping) else None
    return str(units[0]) if isinstance(units, list) and units else None


def unequal(mine: Conditions, theirs: Conditions) -> dict[str, tuple[Any, Any]]:
    """Return the conditions in which two runs differ, with both values.

    Differences that follow from another difference are left out:

    - keys of `model`, such as `model.depth`, if the runs have different models; likewise for `data`
    - the digest of the data if another key of `data` differs
    - `steps` if any other condition differs
    """
    found = {
        key: (value, theirs[key])
        for key, value in mine.items()
        if key in theirs and value != theirs[key]
    }
    found = {
        key: both
        for key, both in found.items()
        if "." not in key or key.partition(".")[0] not in found
    }
    if any(key.startswith("data.") and key != DIGEST for key in found):
        found.pop(DIGEST, None)
    if len(found) > 1:
        found.pop("steps", None)
    return found


def usual(runs: Sequence[Conditions]) -> Conditions:
    """Return the conditions of the run that is comparable to the largest number of runs.

    Return an empty mapping if there are no runs.
    """
    return max(runs, key=lambda one: sum(not unequal(one, other) for other in runs), default={})


def seedless(run: FoundRun) -> Conditions:
    """Return the settings and conditions of a run that do not depend on its seed.

    Two runs for which these are equal differ only in their seed. Completed runs are compared by the
    number of steps done, not by `max_steps`.
    """
    found, choices = _settings(run), _choices(run)
    if run.schedule in WHOLE:
        found, choices = _without_method(found), _without_method(choices)
    for key in ("seed", "device", *(["max_steps"] if run.status == "completed" else [])):
        found.pop(key, None)
    found |= {f"choice of {group}": choices[group] for group in choices if group not in OWN}
    used = {
        "name": name_without_seed(run) or "",
        "tags": tags(run) or "",
        "schedule": run.schedule,
        **{key: run.recorded(key) for key in ("gpus", "threads")},
        **conditions(run),
        **(locality(run) if run.schedule in LOCAL else {}),
    }
    return found | _known(used)


def seed(run: FoundRun) -> int | None:
    """Return a run's seed; None if unknown."""
    return whole(run.recorded("seed"))


def name(run: FoundRun) -> str | None:
    """Return the user's name for a run; None if there is none."""
    found = run.recorded("name")
    return None if found is None else str(found)


def name_without_seed(run: FoundRun) -> str | None:
    """Return the user's name without the seed at its end: `vit-s` for `vit-s0`."""
    given = name(run)
    found = re.fullmatch(r"(.*?)(\d+)", given or "")
    return found[1] if found and found[2] == str(seed(run)) else given


def tags(run: FoundRun) -> str | None:
    """Return the user's tags in alphabetical order, as text; None if unknown."""
    found = run.recorded("tags")
    return " ".join(sorted(map(str, found))) if isinstance(found, list) else None


def method(run: FoundRun) -> str | None:
    """Return a run's local method as text, such as "dgl", or "dgl fba=on" if `fba` is not off.

    The result is None if the run has no local losses, or if the method is unknown.
    """
    if run.schedule not in LOCAL:
        return None
    path = str(run.configured("local", "_target_") or "ppll_cli.")
    choice = _choice(run, "local")
    if choice is None or not path.startswith("ppll_cli."):  # a class that a user wrote
        choice = path.rpartition(".")[2] or None
    bank = run.configured("choices", "fba")
    return choice if choice is None or bank in (None, "off") else f"{choice} fba={bank}"


def settings(runs: Sequence[FoundRun]) -> dict[FoundRun, dict[str, str]]:
    """Return, for each run, its values of the settings in which the runs differ.

    If runs have different options of a group, such as `model=vit` and `model=vit_tiny`, the option
    is listed. A key of this group, such as `model.depth`, is then listed only in two cases:

    - It differs between runs with the same option.
    - All runs have it, and it is not a key of `schedule`, and not `_target_` or `name`.

    `data.root` is listed only if the data differ. Keys in `NAMED` are left out, and the keys of
    `local` and `fba` in runs that train the whole model by one loss (see `WHOLE`).
    """
    known, chosen = [_settings(run) for run in runs], [_choices(run) for run in runs]
    if len({_digest(run) for run in runs} - {None}) > 1:
        for each, run in zip(known, runs, strict=True):
            each["data.root"] = run.configured("data", "root")
    groups = (group for group in dict.fromkeys(chain(*chosen)) if group not in NAMED)
    split = [group for group in groups if len({options.get(group) for options in chosen}) > 1]
    found = [{group: str(options.get(group)) for group in split} for options in chosen]
    for key in dict.fromkeys(chain(*known)):
        group = key.partition(".")[0]
        options = [each.get(group) for each in chosen]
        values = [json.dumps(each.get(key)) for each in known]
        differ = Counter(option for option, _ in {*zip(options, values, strict=True)})
        names_option = key.endswith("_target_") or key == f"{group}.name"
        # A key that some options lack differs only because the runs have different options.
        everywhere = (
            not key.startswith("schedule.")
            and not names_option
            and all(key in each for each in known)
            and len({*values}) > 1
        )
        for each, option, settled in zip(known, options, found, strict=True):
            if (everywhere or differ[option] > 1) and each.get(key) is not None:
                settled[key] = shown(each[key]) or "''"
    return {
        run: _without_method(settled) if run.schedule in WHOLE else settled
        for run, settled in zip(runs, found, strict=True)
    }


def overrides(runs: Sequence[FoundRun]) -> dict[FoundRun, dict[str, str]]:
    """Return the overrides of each job that was refused before it started; other runs have none.

    `schedule` is left out, because it has its own column. If there are several runs, overrides that
    all of them share are left out too.
    """
    given = {run: dict(o.partition("=")[::2] for o in run.overrides) for run in runs}
    settled = [run for run in runs if run.config]
    refused = [set(given[run].items()) for run in runs if run.overrides]
    shared = {
        (key, text)
        for key, text in (set.intersection(*refused) if refused else ())
        if len(runs) > 1 and all(_has(run, key.lstrip("+"), text) for run in settled)
    }
    return {
        run: dict(item for item in found.items() if item not in shared and item[0] != "schedule")
        for run, found in given.items()
    }


def _has(run: FoundRun, key: str, text: str) -> bool:
    from hydra.errors import OverrideParseException  # slow to import, and often not needed

    from ppll_cli.config.overrides import parsed

    try:
        value = parsed([f"{key}={text}"])[0].value()
    except OverrideParseException:  # the file is damaged
        value = text
    chosen = _choices(run).get(key)
    return bool(run.configured(*key.split(".")) == value if chosen is None else chosen == text)


def _without_method(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key.partition(".")[0] not in METHOD}


def shown(value: Any) -> str:
    """Return a value as on a command line, shortened if long."""
    return printable(value if isinstance(value, str) else json.dumps(value), LONGEST_VALUE)


def _options(run: FoundRun, group: str, without: set[str]) -> dict[str, Any]:
    values = run.configured(group)
    known = values if isinstance(values, Mapping) else {}
    return {group: _choice(run, group)} | {
        f"{group}.{key}": value for key, value in known.items() if key not in without
    }


def _digest(run: FoundRun) -> str | None:
    found = run.configured("data_sha256")
    return found[:8] if isinstance(found, str) else None


def _choice(run: FoundRun, group: str) -> Any:
    return run.configured("choices", group) if (found := run.get(group)) is None else found


def _choices(run: FoundRun) -> dict[str, Any]:
    found = run.configured("choices")
    return {**ADDED, **choices_now(found)} if isinstance(found, Mapping) else {}


def _settings(run: FoundRun) -> dict[str, Any]:
    config, recover = run.config, run.configured("recover", "name")
    if config and recover in (None, "off"):  # older runs have no such group
        config = {**config, "recover": {"name": "off"}}
    found = flat({key: value for key, value in config.items() if key not in OWN})
    places = {key for key in found if key.rpartition(".")[2] in PLACES}
    left_out = {"fba.enabled", *places}
    return {k: value for k, value in found.items() if k not in left_out and value != {}}
