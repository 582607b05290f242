"""Reports each run of the launcher as a run in Weights & Biases (wandb), for `tracker=wandb`."""

import csv
import json
import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from ppll_cli.config.commands import command, pip_install
from ppll_cli.config.weights import MODEL_FILE
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import write_json
from ppll_cli.observe.runs import SPLITS
from ppll_cli.observe.tracker import Moment, Tracked, line_scalars, samples, stage_scalars, tree

# wandb takes a second to import, so the methods import it, in the tracker's thread.

log = logging.getLogger(__name__)

RUN_FILE = "wandb-run.json"
"""File in a run directory with the id of the wandb run that a resumed run continues."""

MARGIN_S = 15.0
"""Seconds for wandb's import and last writes, in addition to the time limits for its server."""

EXIT_CODES = {"completed": 0, "interrupted": 255}
"""wandb shows 0 as finished, 255 as killed, any other code as failed."""

RESOLVED = ("gpus", "device", "threads", "modules", "microbatches", "emulated")
"""Keys of the summary that are added to wandb's config, so that panels can group by them."""


Mode = Literal["online", "offline", "disabled"]
OlderMode = Literal["run", "dryrun"]
"""Older names of the modes online and offline. `WANDB_MODE` may contain them."""

Seconds = Annotated[FiniteFloat, Field(gt=0, le=threading.TIMEOUT_MAX / 4)]
"""A time limit in seconds. It is above 0, because wandb understands 0 as "no limit"."""

OLDER: Mapping[str, Mode] = {"run": "online", "dryrun": "offline"}


class Upload(BaseModel):
    """Says which files become wandb artifacts at the end of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeline: bool = False
    checkpoint: bool = False


@dataclass(kw_only=True, eq=False)
class WandbTracker:
    """Reports a run to Weights & Biases, or records it offline.

    A run is recorded offline if there is no key, or if the server does not answer.

    Args:
        project: Project of wandb, for example "ppll-run".
        entity: User or team of wandb; None for the account's default.
        mode: Mode of wandb. None means `disabled` if the variable `WANDB_DISABLED` is set, and
            `online` otherwise.
        name: Name of the wandb run. None means the setting `name`; without one, a text that
            describes the run.
        group: Group of the wandb run; None for the name of the sweep, if there is one.
        dir: Folder for wandb's files; None for the run directory.
        tags: Tags of the wandb run; None for the run's `tags`.
        notes: Notes of the wandb run.
        upload: Says which files become wandb artifacts.
        init_timeout_s: Seconds within which the server must answer at the start.
        finish_timeout_s: Seconds that uploading the remaining data may take at the end.

    Raises:
        ConfigError: `project` has a character that wandb forbids, or wandb is not installed.
    """

    project: str
    entity: str | None = None
    mode: Mode | OlderMode | Literal[""] | None = None
    name: str | None = None
    group: str | None = None
    dir: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    upload: Upload
    init_timeout_s: Seconds = 30.0
    finish_timeout_s: Seconds = 30.0

    def __post_init__(self) -> None:
        if not self.project or any(character in self.project for character in "/\\#?%:"):
            problem = "must be a name without / \\ # ? % or :"
            raise ConfigError("tracker.project", self.project or "''", problem)
        if find_spec("wandb") is None:
            raise ConfigError("tracker", "wandb", "wandb is not installed", pip_install("wandb"))
        self._run: Any = None
        self._with_best: set[str] = set()
        # A short run may end while wandb still waits for its server, so both limits are added.
        self.limit_s = self.init_timeout_s + self.finish_timeout_s + MARGIN_S

    def start(self, run: Tracked) -> None:
        """Begin a wandb run. A resumed run continues the wandb run that it had before."""
        self._tracked = run
        self._run = self._init(
            {**run.config, "choices": dict(run.choices), "metric": run.metric},
            run.run_dir,
            id=_run_id(run),
            resume="allow" if run.resumed else None,
            name=self.name or run.name or run.described,
            tags=self.tags or run.tags or None,  # None lets wandb read WANDB_TAGS
            group=self.group or run.sweep,
            job_type=run.choices["schedule"],
        )
        # The x axis of a panel is `step` by default, and can be `train_seconds`.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("train_seconds", hidden=True)
        self._run.define_metric("*", step_metric="step")
        for split in SPLITS:
            self._keep_best(f"{split}/{run.metric}")

    def metrics(self, line: Mapping[str, Any], at: Moment) -> None:
        """Log the numbers of a line of `metrics.jsonl` to wandb."""
        values = line_scalars(line)
        for key in values:
            if line["split"] != "train" and key.endswith(f"/{self._tracked.metric}"):
                self._keep_best(key)
        self._log(line["step"], {"epoch": line["epoch"], **values}, at)

    def _keep_best(self, key: str) -> None:
        if key not in self._with_best:  # must come before the first value of the metric
            self._with_best.add(key)
            best = "min" if self._tracked.lower_is_better else "max"
            self._run.define_metric(key, step_metric="step", summary=f"{best},last")

    def stages(self, step: int, stages: Sequence[Mapping[str, Any]], at: Moment) -> None:
        """Log each stage's numbers to wandb, such as `stage_0/compute_fraction`, and the bubble."""
        self._log(step, stage_scalars(stages), at)

    def _log(self, step: int, values: Mapping[str, Any], at: Moment) -> None:
        axes = {"step": step, "train_seconds": at.train_s, "_timestamp": at.unix_s}
        self._run.log({**axes, **values})

    def end(self, summary: Mapping[str, Any]) -> None:
        """Add the summary, pictures and artifacts, and finish the wandb run."""
        import wandb

        run, folder = self._run, self._tracked.run_dir
        run.config.update(
            {"resolved": {key: summary[key] for key in RESOLVED if key in summary}},
            allow_val_change=True,
        )
        run.summary.update(tree(summary))  # wandb's pages show nested keys with dots
        if (picture := folder / "timeline.png").exists():
            run.log({"step": summary["steps"], "timeline": wandb.Image(str(picture))})
        if pictures := samples(folder):
            found = [wandb.Image(str(sample), caption=sample.stem) for sample in pictures]
            run.log({"step": summary["steps"], "samples": found})
        if self.upload.timeline:
            self._artifact("timeline", [folder / "timeline.json"])
        if self.upload.checkpoint:
            last = (folder / "checkpoints" / "last").resolve()
            self._artifact("checkpoint", [last, folder / MODEL_FILE])
        self._finish(EXIT_CODES.get(summary["status"], 1))

    def sweep(self, folder: Path, name: str) -> None:
        """Make a wandb run with a sweep's comparison, in the wandb group of the sweep's runs."""
        import wandb

        self._run = run = self._init(
            {"sweep": name},
            folder,
            id=None,
            name=f"comparison {name}",
            group=self.group or name,
            job_type="comparison",
            tags=self.tags or None,
        )
        if (picture := folder / "comparison.png").exists():
            run.log({"comparison_picture": wandb.Image(str(picture))})
        for key in ("comparison", "comparison_groups"):
            if (table := folder / f"{key}.csv").exists():
                with table.open(newline="", encoding="utf-8") as file:
                    columns, *rows = csv.reader(file)
                data = [[_number(cell) for cell in row] for row in rows]
                # A column may have both numbers and empty cells.
                found = wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)
                run.log({key: found})
        self._finish(0)

    def abandon(self) -> None:
        """Kill wandb's process. Data that it has written stay on disk."""
        from wandb.sdk import wandb_setup

        # wandb has no public way to end its process at once. Without `_cleanup`, wandb would wait
        # when the program exits.
        connection: Any = wandb_setup.singleton()._connection
        connection._cleanup()
        connection._proc._process.kill()
        connection._proc._process.wait()
        if self._run is not None:  # otherwise wandb has written nothing that could be uploaded
            log.warning("to upload what wandb did not receive: %s", self._how_to_sync())

    def _init(self, config: Mapping[str, Any], folder: Path, **of_run: Any) -> Any:
        # By default, wandb reports its own errors to its server even offline. Without a network,
        # this delays the program's exit by 10 to 20 s. wandb also prints where it found the key.
        # The two variables prevent the reports and this message.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        def init(mode: Mode | None) -> Any:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                dir=self.dir or str(folder),
                notes=self.notes,
                config=dict(config),
                mode=mode,
                settings=wandb.Settings(
                    allow_val_change=True,
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    disable_job_creation=True,
                    finish_timeout=self.finish_timeout_s,
                    finish_timeout_raises=True,
                    init_timeout=self.init_timeout_s,
                    save_code=False,
                    silent=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                    x_transaction_log_flush_interval=1.0,  # by default, a kill loses 15 s of data
                ),
                **of_run,
            )

        mode = _mode(self.mode)
        if mode in (None, "online"):
            try:
                if wandb.login(prompt=False):
                    return init("online")
                login = command("wandb", "login")
                why = f"no key is configured; use {login}, or set WANDB_API_KEY"
            except Exception as error:
                why = " ".join(str(error).split())
                wandb.teardown()  # ends wandb's process, which regards the run as still running
            said = log.info if mode is None else log.warning
            said("wandb: recorded offline: %s", why)
            mode = "offline"
        return init(mode)

    def _finish(self, exit_code: int) -> None:
        import wandb

        offline = self._run.offline
        try:
            self._run.finish(exit_code=exit_code)
            if offline:
                log.info("to upload what wandb recorded: %s", self._how_to_sync())
        except TimeoutError:
            said = "wandb had not finished uploading after %g s; to upload the rest: %s"
            log.warning(said, self.finish_timeout_s, self._how_to_sync())
        finally:
            wandb.teardown()  # otherwise wandb's process runs until the program ends

    def _how_to_sync(self) -> str:
        return command("wandb", "sync", self._run.settings.sync_dir)

    def _artifact(self, kind: str, paths: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind)
        for path in paths:
            if path.is_dir():
                artifact.add_dir(str(path), name=path.name, skip_cache=True)
            elif path.exists():
                artifact.add_file(str(path), skip_cache=True)
        if artifact.manifest.entries:
            self._run.log_artifact(artifact)


def _mode(given: str | None) -> Mode | None:
    if given:
        return OLDER.get(given, cast("Mode", given))
    disabled = os.environ.get("WANDB_DISABLED", "").lower()
    if disabled in ("", "0", "false", "no", "off"):
        return None
    told = "WANDB_DISABLED=%s: nothing is sent to wandb; to send data, use tracker.mode=online"
    log.info(told, disabled)
    return "disabled"


def _run_id(run: Tracked) -> str:
    file = run.run_dir / RUN_FILE
    if run.resumed:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(file.read_text())["id"])
    identity = secrets.token_hex(4)
    write_json(file, {"id": identity})
    return identity


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
