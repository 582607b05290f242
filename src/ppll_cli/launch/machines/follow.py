"""Jobs on several machines: machine 0 announces a job, and the other machines run their parts."""

import json
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

from ppll_cli.config.options import as_typed
from ppll_cli.config.settings import parse
from ppll_cli.config.targets import make
from ppll_cli.config.weights import absolute_path
from ppll_cli.errors import ConfigError, Interrupted, PpllError, RunFailedError
from ppll_cli.job.job import Job
from ppll_cli.job.manifest import SavedFile, read_manifest
from ppll_cli.launch.launcher import launch
from ppll_cli.launch.machines.fleet import PREPARING_S, Fleet, Message, read_error
from ppll_cli.launch.wiring import fitting
from ppll_cli.leaves.files import write_text
from ppll_cli.leaves.scratch import scratch
from ppll_cli.prepare.preparation import Prepared, prepare
from ppll_cli.transport.channel import Transport

log = logging.getLogger(__name__)

MARK = ".machines"
"""Name of a file that machine 0 writes into the run directory.

A machine that finds the file there shares the directory with machine 0."""


def announce(fleet: Fleet, config: Mapping[str, Any], prepared: Prepared, run_dir: Path) -> None:
    """Tell all other machines about a job, wait until they are ready, and let them begin.

    Raises:
        ConfigError: A machine cannot run its part of the job.
        RunFailedError: A machine gives no sign of life, takes too long, or fails in another way; or
            a file of the checkpoint cannot be sent.
    """
    fleet.remember(str(run_dir))
    fleet.close_parcels()  # an earlier job that did not begin may have left them open
    mark = run_dir / MARK
    write_text(mark, secrets.token_hex())
    try:
        fleet.tell(_announcement(fleet, config, prepared, run_dir, mark.read_text()))
        _wait_until_ready(fleet, prepared.job)
    except PpllError as error:
        fleet.fail(error)
        raise
    finally:
        mark.unlink(missing_ok=True)
    fleet.tell({"kind": "go"})
    if apart := [fleet.name(machine) for machine in sorted(fleet.parcels)]:
        told = "%s is not shared with %s: files that are saved on these machines are sent to %s"
        log.info(told, run_dir, " and ".join(apart), fleet.name(0))


def _wait_until_ready(fleet: Fleet, job: Job) -> None:
    waiting, until_s = {*range(1, len(fleet.machines))}, time.monotonic() + PREPARING_S
    paths = [Path(job.checkpoint or "", file.name) for file in _checkpoint_files(job)]
    sent: list[Event] = []
    while waiting:
        message = fleet.hear(0.5)
        if message is not None and message.get("job") == fleet.jobs:
            machine = message["machine"]
            match message["kind"]:
                case "failed":
                    raise read_error(message)
                case "apart":
                    parcels = fleet.open_parcels(machine)
                    sent += [parcels.send(path) for path in paths]
                case "prepared":
                    waiting.discard(machine)
        if silent := fleet.silent():
            raise RunFailedError(silent[1])
        if not all(each.is_set() for each in sent):  # `Parcels` itself notices a stalled transfer
            until_s = time.monotonic() + PREPARING_S
        if time.monotonic() > until_s:
            name = fleet.name(min(waiting))
            raise RunFailedError(f"{name} was not ready after {PREPARING_S:.0f} s")


def _announcement(
    fleet: Fleet, config: Mapping[str, Any], prepared: Prepared, run_dir: Path, mark: str
) -> Message:
    job = prepared.job
    fixed = json.loads(json.dumps(config))
    fixed |= {"threads": job.threads, "gpus": len(job.seats), "resume": None}
    # Either all machines restart workers or none does, so machine 0 replaces `auto`.
    recover = "stage" if job.restartable else "off"
    fixed["recover"] = {**job.settings.recover.model_dump(), "name": recover}
    begins = job.weights is not None
    fixed["weights"] = absolute_path(fixed["weights"]) if begins else None
    fixed["weights_partial"] = begins and fixed["weights_partial"]
    if job.stages > 1:
        cuts = [job.names[cut] for cut in job.layout.cuts()]
        fixed["partition"] = {"name": "manual", "cuts": cuts}
    elif fixed["partition"]["name"] == "profile":
        fixed["partition"]["name"] = "uniform"
    if job.local_learning:
        fixed["local"] |= {"cuts": list(prepared.cuts)}
        if "modules" in fixed["local"]:
            fixed["local"]["modules"] = None
    return {
        "kind": "job",
        "job": fleet.jobs,
        "config": fixed,
        "run_dir": str(run_dir),
        "mark": mark,
        "weights_sha256": prepared.weights["sha256"] if begins and prepared.weights else None,
        "start": job.start,
        "checkpoint": None if job.checkpoint is None else str(job.checkpoint),
        "files": [asdict(file) for file in _checkpoint_files(job)],
    }


def _checkpoint_files(job: Job) -> list[SavedFile]:
    return [] if job.checkpoint is None else [*read_manifest(job.checkpoint).files]


def follow(fleet: Fleet) -> None:
    """Run this machine's part of each job, until machine 0 announces the end of all jobs.

    Raises:
        PpllError: A job failed or was interrupted, or machine 0 gives no sign of life. After such a
            job, this machine first runs its part of all later jobs.
    """
    failed: PpllError | None = None
    kind = ""
    while kind != "end":
        try:
            message = _next(fleet)
            kind = message["kind"]
            if kind == "failed":
                failed = failed or read_error(message)
            elif kind == "job":
                _run_part(fleet, message)
        except PpllError as error:
            failed = error
            if not isinstance(error, ConfigError | Interrupted):  # these are shown at the end
                log.error("ppll-run: %s", error)
            if isinstance(error, RunFailedError) and fleet.silent() is not None:
                break
    if failed is not None:
        raise failed


def _next(fleet: Fleet) -> Message:
    while (message := _heard(fleet, 0.5)) is None:
        pass
    return message


def _heard(fleet: Fleet, timeout_s: float) -> Message | None:
    message = fleet.hear(timeout_s)
    if message is None and (silent := fleet.silent()):
        raise RunFailedError(silent[1])
    return message


def _check_not_given_up(fleet: Fleet, message: Message) -> None:
    if message["kind"] == "failed":
        raise read_error(message)
    if message["kind"] != "go":
        raise fleet.given_up(message)


def _run_part(fleet: Fleet, message: Message) -> None:
    fleet.jobs = message["job"]
    with ExitStack() as held:
        try:
            prepared, transport = _prepared(fleet, _within_reach(fleet, message, held))
        except Exception as error:
            fleet.fail(error)
            raise
        fleet.tell({"kind": "prepared", "job": fleet.jobs})
        while (answer := _next(fleet))["kind"] != "go":
            _check_not_given_up(fleet, answer)
        ending = launch(prepared.job, transport, lambda _: None, fleet=fleet)
    if ending.signal is not None:
        raise Interrupted(ending.signal)


def _within_reach(fleet: Fleet, message: Message, held: ExitStack) -> Message:
    run_dir, seen = Path(message["run_dir"]), ""
    with suppress(OSError):
        seen = (run_dir / MARK).read_text()
    if seen == message["mark"]:
        return message
    own = held.enter_context(scratch())
    parcels = fleet.open_parcels(0)
    held.callback(fleet.close_parcels)
    fleet.tell({"kind": "apart", "job": fleet.jobs})
    fetched = own / "checkpoint"
    there = [parcels.take(SavedFile(**file), fetched) for file in message["files"]]
    while not all(each.is_set() for each in there):
        if (answer := _heard(fleet, 0.1)) is not None:
            _check_not_given_up(fleet, answer)
    start = None if message["checkpoint"] is None else str(fetched)
    return {**message, "run_dir": str(own), "checkpoint": start}


def _check_weights(fleet: Fleet, prepared: Prepared, message: Message) -> None:
    used, wanted = prepared.weights, message["weights_sha256"]
    if used is not None and used["sha256"] != wanted:
        own, first = fleet.name(fleet.rank), fleet.name(0)
        problem = f"is not the same file on {own} as on {first}: the digests differ"
        raise ConfigError("weights", used["file"], problem, "copy the same file to all machines")


def _prepared(fleet: Fleet, message: Message) -> tuple[Prepared, Transport]:
    settings = parse(message["config"])
    prepared = prepare(settings, message["run_dir"], fleet.machines, fleet.rank)
    _check_weights(fleet, prepared, message)
    job = replace(prepared.job, start=message["start"])
    if message["checkpoint"] is not None:
        job = replace(job, checkpoint=Path(message["checkpoint"]))
    transport: Transport = make("transport", settings.transport)
    _, name = as_typed("transport", settings.transport["_target_"])
    return replace(prepared, job=job), fitting(str(name), transport, job, fleet.rank)
