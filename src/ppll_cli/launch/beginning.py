"""Writes, checks and cleans up a run directory before training begins."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ppll_cli.config import objective
from ppll_cli.config.commands import short_path
from ppll_cli.config.weights import MODEL_FILE, absolute_path
from ppll_cli.data.identity import Identity, difference
from ppll_cli.errors import ConfigError
from ppll_cli.job import checkpoint
from ppll_cli.job.checkpoint import EMA, Checkpoint, saved_tensors
from ppll_cli.job.job import Job
from ppll_cli.launch.record import DATA_FILES, PATHS, absolute, write_record
from ppll_cli.launch.results import drop_unfinished
from ppll_cli.launch.resume import Recorded
from ppll_cli.leaves.files import digest_of, write_text
from ppll_cli.local.method import LocalMethod, module_criterion
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.unit import make_seeded
from ppll_cli.observe.metrics import Metrics
from ppll_cli.observe.runs import CONFIG_FILE, SUMMARY_FILE, object_in, whole
from ppll_cli.prepare.preparation import Prepared
from ppll_cli.tasks.task import lower_is_better
from ppll_cli.worker.versions import saved_name

log = logging.getLogger(__name__)

NETWORKS = ("model.", "auxiliary.")
"""Prefixes of the names of parameters and buffers in a checkpoint."""


def record(
    run_dir: Path, config: Mapping[str, Any], choices: Mapping[str, str], prepared: Prepared
) -> None:
    """Write what `resume` reads: the run's configuration, and a list that identifies its data.

    `choices` has the chosen option of each group of options, for example "ring" for `transport`.

    Raises:
        ConfigError: The directory has the record of another run.
        OSError: A file cannot be written.
    """
    data = {k: absolute(v) if k in PATHS else v for k, v in config["data"].items()}
    record = {**config, "data": data, "choices": dict(choices)}
    record |= {"threads": prepared.job.threads, "cuts": list(prepared.cuts)}
    record["classes"] = list(prepared.subject.classes)
    record["lower_is_better"] = lower_is_better(prepared.job.task)
    if (bank := prepared.job.local.get("bank")) is not None:  # settings of the feature bank
        record |= {"fba": bank, "local": {**config["local"], "bank": bank}}
    if config.get("weights") is not None:
        record["weights"] = absolute_path(config["weights"])
        record["weights_used"] = prepared.weights
    if prepared.subject.identity is not None:
        record["data_sha256"] = digest_of(prepared.subject.identity)
    write_record(run_dir, record)
    if prepared.subject.identity is not None:
        write_text(run_dir / DATA_FILES, json.dumps(prepared.subject.identity) + "\n")


def remove_record(run_dir: Path) -> None:
    """Remove the files that `record` wrote."""
    for name in (CONFIG_FILE, DATA_FILES):
        (run_dir / name).unlink(missing_ok=True)


def check_data(
    before: Recorded,
    data: Mapping[str, Any],
    identity: Identity | None,
    otherwise: str = "start a new run",
) -> None:
    """Refuse data that are not the data with which a run was started.

    If the identity of either is unknown, nothing is refused.

    Args:
        before: The record of this run.
        data: The `data` section of the settings.
        identity: The identity of the data as they are now; None if they have none.
        otherwise: What the user can do instead of giving the original data.

    Raises:
        ConfigError: The data differ.
    """
    if before.data_sha256 is None or identity is None:
        return
    if digest_of(identity) == before.data_sha256:
        return
    then = recorded_identity(before)
    how = difference(identity, then) if then else "what differs is not recorded"
    key = next((name for name in ("folders", "root") if name in data), "_target_")
    problem = f"these are not the data that the run was started with: {how}"
    remedy = f"give the folder with the original data, or {otherwise}"
    if data.get("eval_limit") is not None:
        remedy += " (earlier versions of ppll-run chose other labelled pictures for"
        remedy += " data.eval_limit, so the data of their runs differ)"
    raise ConfigError(f"data.{key}", data.get(key), problem, remedy)


def recorded_identity(before: Recorded) -> Identity:
    """Return the identity of the data when a run was started; empty if it is unknown."""
    found = object_in(before.run_dir / DATA_FILES)
    return found if digest_of(found) == before.data_sha256 else {}


def check_weights(before: Recorded, weights: Mapping[str, Any] | None) -> None:
    """Refuse to resume a run if its file of initial weights has changed since it was started.

    Args:
        before: The record of the run.
        weights: The `file`, and its digest `sha256` as it is now; None if the file is not read.

    Raises:
        ConfigError: The file has changed.
    """
    then = before.weights
    if weights is not None and then is not None and weights["sha256"] != then.get("sha256"):
        problem = "this is not the file that the run was started with: its digest differs"
        remedy = "restore the original file, or start a new run"
        raise ConfigError("weights", weights["file"], problem, remedy)


def check_restorable(job: Job, start: Checkpoint) -> None:
    """Refuse a checkpoint whose tensors do not fit the networks that this version builds.

    Raises:
        ConfigError: A tensor is missing, is unknown, or has another shape.
    """
    seed = job.settings.seed
    model = make_seeded("model", job.settings.model, seed)
    method: LocalMethod = make_seeded("local", job.local, seed)
    known = {name: tuple(tensor.shape) for name, tensor in saved_tensors(start.folder)[0].items()}
    needed = dict(_needed(job, method))
    unknown = [name for name in known if name.startswith(NETWORKS) and name not in needed]
    for key in (*needed, *unknown):
        if needed.get(key) == known.get(key):
            continue
        there = f"has shape {list(known[key])}" if key in known else "is missing"
        wants = f"needs shape {list(needed[key])}" if key in needed else "has no such tensor"
        problem = f"it cannot be resumed: {key} {there} in its checkpoint, but this version {wants}"
        auxiliary = key.startswith("auxiliary.")
        if reason := getattr(method if auxiliary else model, "changed", ""):
            other = "auxiliary networks differ" if auxiliary else "model differs"
            problem = f"it cannot be resumed, because this version's {other}: {reason}"
        raise ConfigError("resume", job.run_dir, problem, "start a new run")


def _needed(job: Job, method: LocalMethod) -> Iterator[tuple[str, tuple[int, ...]]]:
    site = job.site(job.units())
    with torch.device("meta"):
        model = PlainModel(site.units)
        criteria = [module_criterion(method, site.at(m)) for m in range(len(job.layout.modules))]
    for name, tensor in model.state_dict().items():
        yield f"model.{name}", tuple(tensor.shape)
        if job.settings.optim.ema is not None and tensor.is_floating_point():
            yield f"{EMA}{name}", tuple(tensor.shape)
    for module, criterion in enumerate(criteria):
        for name, tensor in criterion.state_dict().items():
            yield f"auxiliary.{module}.{name}", tuple(tensor.shape)
    for watch in job.routes.watches.values():
        unit = job.watched[watch.unit]
        for age in range(1, watch.lag):
            for name, spec in unit.specs.items():
                yield saved_name(unit.name, age, name), spec.shape


def finished(
    run_dir: Path, start: Checkpoint | None, steps: int, metrics: Metrics, wanted: str
) -> dict[str, Any] | None:
    """Return the summary of a run that has nothing left to do; None if it must be resumed.

    Args:
        run_dir: The run directory.
        start: The newest checkpoint; None if there is none.
        steps: Number of steps of the whole run.
        metrics: The metrics file of the run.
        wanted: The key of the objective in the summary.
    """
    if start is None or start.step < steps or not (run_dir / MODEL_FILE).is_file():
        return None
    summary = object_in(run_dir / SUMMARY_FILE)
    measured = all(isinstance(summary.get(key), dict) for key in ("train", "test"))
    ended = summary.get("status"), whole(summary.get("steps"))
    if ended != ("completed", start.step) or not measured:
        return None
    try:
        objective.value(wanted, summary)
    except (ValueError, KeyError, TypeError, IndexError):  # the summary is damaged
        return None
    return summary if metrics.written_until() <= start.step else None


def restarts(run_dir: Path) -> list[dict[str, Any]]:
    """Return the earlier restarts of a resumed run's workers, from its `summary.json`."""
    found = object_in(run_dir / SUMMARY_FILE).get("restarts", [])
    listed = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    return [each for each in found if "stage" in each] if listed else []


def go_back(run_dir: Path, start: Checkpoint | None, metrics: Metrics, steps: int) -> None:
    """Undo what was written into the run directory after the checkpoint at which the run resumes.

    Args:
        run_dir: The run directory.
        start: This checkpoint; None if there is none, and the run starts again at step 0.
        metrics: The metrics file of the run.
        steps: Number of steps of the whole run. If the checkpoint is of the last step, the
            evaluation after this step is undone, too.
    """
    if start is None:
        log.warning("there is no checkpoint: the run starts again at step 0")
    else:
        log.info("continuing after step %d, from %s", start.step, short_path(start.folder))
    step = start.step if start else 0
    state = start.manifest.metrics if start else {}
    unreported = saved_tensors(start.folder)[1] if start else {}
    metrics.go_back(step, state, evaluated=step < steps, incomplete=bool(unreported))
    checkpoint.go_back(run_dir, start)
    # An unfinished checkpoint may have files of stages that the run no longer has.
    drop_unfinished(run_dir)
