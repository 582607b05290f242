"""A run on several machines: what machine 0 tells the others of it, and what they make of that."""

import json
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppll_cli.errors import ConfigError, Interrupted, PpllError, RunFailedError
from ppll_cli.runtime.launcher import launch
from ppll_cli.runtime.machines.fleet import PREPARING_S, Fleet, Message, refusal
from ppll_cli.runtime.prepare import Prepared, prepare
from ppll_cli.runtime.wiring import fitting
from ppll_cli.settings import parse
from ppll_cli.targets import make
from ppll_cli.transport.channel import Transport

log = logging.getLogger(__name__)

MARK = ".machines"
"""A file in the run directory by which the others see that it is the same one."""


def announce(fleet: Fleet, config: Mapping[str, Any], prepared: Prepared, run_dir: Path) -> None:
    """Have all machines make a run ready.

    Args:
        fleet: The machines; this is machine 0.
        config: The configuration as plain data.
        prepared: What was made of it here.
        run_dir: The run directory.

    Raises:
        ConfigError: One of them cannot do its part.
        RunFailedError: One of them is gone, or takes too long.
    """
    fleet.remember(str(run_dir))
    mark = run_dir / MARK
    mark.write_text(secrets.token_hex())
    try:
        fleet.tell(_told(fleet, config, prepared, run_dir, mark.read_text()))
        waiting, until_s = {*range(1, len(fleet.machines))}, time.monotonic() + PREPARING_S
        while waiting:
            message = fleet.hear(0.5)
            if message is not None and message.get("job") == fleet.jobs:
                if message["kind"] == "refused":
                    raise refusal(message)
                if message["kind"] == "failed":
                    name = fleet.name(message["machine"])
                    raise RunFailedError(f"{name}: {message['problem']}")
                waiting.discard(message["machine"])
            if silent := fleet.silent():
                raise RunFailedError(silent[1])
            if time.monotonic() > until_s:
                name = fleet.name(min(waiting))
                raise RunFailedError(f"{name} was not ready after {PREPARING_S:.0f} s")
    except ConfigError as error:
        fleet.refuse(error)
        raise
    except RunFailedError as error:
        fleet.tell({"kind": "end of job", "problem": str(error)})
        raise
    finally:
        mark.unlink(missing_ok=True)
    fleet.tell({"kind": "go"})


def _told(
    fleet: Fleet, config: Mapping[str, Any], prepared: Prepared, run_dir: Path, mark: str
) -> Message:
    """What the others need: the configuration, with all that was decided here in it."""
    job, units = prepared.job, prepared.units
    fixed = json.loads(json.dumps(config))
    fixed |= {"threads": job.threads, "gpus": len(job.seats), "resume": None}
    if job.stages > 1:
        cuts = [units[stage.start] for stage in job.layout.stages[1:]]
        fixed["partition"] = {"name": "manual", "cuts": cuts}
    elif fixed["partition"]["name"] == "profile":
        fixed["partition"]["name"] = "uniform"
    if job.local_learning:
        fixed["local"] |= {"cuts": list(prepared.cuts)}
        if "modules" in fixed["local"]:
            fixed["local"]["modules"] = None
    checkpoint = None if job.checkpoint is None else str(job.checkpoint)
    return {
        "kind": "job",
        "job": fleet.jobs,
        "config": fixed,
        "run_dir": str(run_dir),
        "mark": mark,
        "start": job.start,
        "checkpoint": checkpoint,
    }


def follow(fleet: Fleet) -> None:
    """Do this machine's part of all jobs, until machine 0 says that there are no more.

    Raises:
        PpllError: The last job that did not complete; machine 0 has told the user why.
    """
    failure: PpllError | None = None
    while (message := _next(fleet))["kind"] != "end":
        if message["kind"] == "refused":
            failure = failure or refusal(message)
        elif message["kind"] == "job":
            try:
                _do(fleet, message)
            except PpllError as error:
                failure = error
                if not isinstance(error, ConfigError | Interrupted):  # those are told at the end
                    log.error("ppll-run: %s", error)
    if failure is not None:
        raise failure


def _next(fleet: Fleet) -> Message:
    while True:
        if (message := fleet.hear(0.5)) is not None:
            return message
        if silent := fleet.silent():
            log.error("ppll-run: %s", silent[1])
            raise RunFailedError(silent[1])


def _do(fleet: Fleet, message: Message) -> None:
    """This machine's part of one job."""
    fleet.jobs = message["job"]
    try:
        prepared, transport = _prepared(fleet, message)
    except ConfigError as error:
        fleet.refuse(error)
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        fleet.tell({"kind": "failed", "job": fleet.jobs, "problem": problem})
        raise
    fleet.tell({"kind": "prepared", "job": fleet.jobs})
    while (answer := _next(fleet))["kind"] != "go":
        if answer["kind"] == "refused":
            raise refusal(answer)
        if answer["kind"] == "end of job":
            raise RunFailedError(f"{fleet.name(0)}: {answer.get('problem', 'it ended')}")
    ending = launch(prepared.job, transport, lambda _: None, fleet=fleet)
    if ending.signal is not None:
        raise Interrupted(ending.signal)


def _prepared(fleet: Fleet, message: Message) -> tuple[Prepared, Transport]:
    run_dir = Path(message["run_dir"])
    seen = ""
    with suppress(OSError):
        seen = (run_dir / MARK).read_text()
    if seen != message["mark"]:
        raise ConfigError(
            "hydra.run.dir",
            run_dir,
            f"{fleet.name(fleet.rank)} does not have that folder",
            "choose one that all machines share",
        )
    settings = parse(message["config"])
    prepared = prepare(settings, str(run_dir), fleet.machines)
    job = replace(prepared.job, start=message["start"])
    if message["checkpoint"] is not None:
        job = replace(job, checkpoint=Path(message["checkpoint"]))
    transport: Transport = make("transport", settings.transport)
    name = settings.transport["_target_"]
    return replace(prepared, job=job), fitting(name, transport, job, fleet.rank)
