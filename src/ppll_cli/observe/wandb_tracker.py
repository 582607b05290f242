"""`tracker=wandb`: Weights & Biases, one of its runs per run, owned by the parent process.

wandb is imported when the run starts, in the tracker's thread: it takes a second that neither a
refused configuration nor the training is to wait for.
"""

import csv
import json
import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from ppll_cli.config.commands import command, pip_install
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.files import write_json
from ppll_cli.observe.runs import SPLITS
from ppll_cli.observe.tracker import Moment, Tracked, line_scalars, samples, stage_scalars, tree

log = logging.getLogger(__name__)

RUN_FILE = "wandb-run.json"
"""In a run directory: the identity of its wandb run, which a resumed run goes on with."""

MARGIN_S = 15.0
"""For what wandb does beside waiting for its server: being imported, writing what is left."""

EXIT_CODES = {"completed": 0, "interrupted": 255}
"""As wandb reads them: finished, killed; anything else is failed."""

RESOLVED = ("gpus", "device", "threads", "modules", "microbatches", "emulated")
"""Keys of the summary that say what a configuration became; panels group by a config's keys."""


Mode = Literal["online", "offline", "disabled"]
OlderMode = Literal["run", "dryrun"]
"""What `WANDB_MODE` may also say: older names of online and of offline."""

OLDER: Mapping[str, Mode] = {"run": "online", "dryrun": "offline"}


class Upload(BaseModel):
    """Which files go to wandb as artifacts when the run is over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeline: bool = False
    checkpoint: bool = False


class WandbTracker:
    """Tells Weights & Biases of a run; offline where there is no key, or no answer.

    Args:
        project: Of wandb.
        entity: The user or team; null is the account's own.
        mode: null is disabled where `WANDB_DISABLED` says so, else online where there is a key,
            else offline.
        name: Of the run; null is the run's own name, or what it is.
        group: null is the sweep's folder, where the run is one of a sweep.
        dir: The folder for wandb's files; null is the run directory.
        tags: Of the run; null is the run's own.
        notes: Of the run.
        upload: Which files go there as artifacts.
        init_timeout_s: Seconds until the server must have answered.
        finish_timeout_s: Seconds that may be spent at the end on what is not uploaded yet.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None = None,
        mode: Mode | OlderMode | Literal[""] | None = None,
        name: str | None = None,
        group: str | None = None,
        dir: str | None = None,  # noqa: A002 - wandb's own word for it
        tags: list[str] | None = None,
        notes: str | None = None,
        upload: Upload,
        init_timeout_s: float = 30.0,
        finish_timeout_s: float = 30.0,
    ) -> None:
        if not project or any(sign in project for sign in "/\\#?%:"):
            problem = "must be a name without / \\ # ? % or :"
            raise ConfigError("tracker.project", project or "''", problem)
        limits = {"init_timeout_s": init_timeout_s, "finish_timeout_s": finish_timeout_s}
        for key, limit in limits.items():
            if not 0 < limit <= threading.TIMEOUT_MAX / 4:  # wandb takes 0 for no limit
                raise ConfigError(f"tracker.{key}", limit, "must be a number of seconds above 0")
        if find_spec("wandb") is None:
            raise ConfigError("tracker", "wandb", "wandb is not installed", pip_install("wandb"))
        self._entity, self._project, self._mode = entity, project, mode
        self._name, self._group, self._dir = name, group, dir
        self._tags, self._notes, self._upload = tags, notes, upload
        self._init_s, self._finish_s = init_timeout_s, finish_timeout_s
        self._run: Any = None
        self._with_best: set[str] = set()
        # A short run may be over while the server is still waited for.
        self.limit_s = init_timeout_s + finish_timeout_s + MARGIN_S

    def start(self, run: Tracked) -> None:
        """Begin, or go on with, the run's wandb run."""
        self._tracked = run
        self._run = self._init(
            {**run.config, "choices": dict(run.choices), "metric": run.metric},
            run.run_dir,
            id=_run_id(run),
            resume="allow" if run.resumed else None,
            name=self._name or run.name or run.described,
            tags=self._tags or run.tags or None,  # null leaves it to WANDB_TAGS
            group=self._group or run.sweep,
            job_type=run.choices["schedule"],
        )
        # Every number can be drawn over both; steps are the axis that the pages open with.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("train_seconds", hidden=True)
        self._run.define_metric("*", step_metric="step")
        for split in SPLITS:
            self._best_counts(f"{split}/{run.metric}")

    def metrics(self, line: Mapping[str, Any], at: Moment) -> None:
        """Log a line, in a row of its own."""
        values = line_scalars(line)
        for key in values:
            if line["split"] in SPLITS and key.endswith(f"/{self._tracked.metric}"):
                self._best_counts(key)
        self._log(line["step"], {"epoch": line["epoch"], **values}, at)

    def _best_counts(self, key: str) -> None:
        """Have the best value of a metric in the run's summary, beside the last; higher is better.

        wandb has to be told once, before the first value.
        """
        if key not in self._with_best:
            self._with_best.add(key)
            self._run.define_metric(key, step_metric="step", summary="max,last")

    def stages(self, step: int, stages: Sequence[Mapping[str, Any]], at: Moment) -> None:
        """Log what the stages do."""
        self._log(step, stage_scalars(stages), at)

    def _log(self, step: int, values: Mapping[str, Any], at: Moment) -> None:
        axes = {"step": step, "train_seconds": at.train_s, "_timestamp": at.unix_s}
        self._run.log({**axes, **values})

    def end(self, summary: Mapping[str, Any]) -> None:
        """Add the summary and the files, and finish."""
        import wandb

        run, folder = self._run, self._tracked.run_dir
        run.config.update(
            {"resolved": {key: summary[key] for key in RESOLVED if key in summary}},
            allow_val_change=True,
        )
        run.summary.update(tree(summary))  # whose pages show keys with dots
        if (picture := folder / "timeline.png").exists():
            run.log({"step": summary["steps"], "timeline": wandb.Image(str(picture))})
        if pictures := samples(folder):
            found = [wandb.Image(str(sample), caption=sample.stem) for sample in pictures]
            run.log({"step": summary["steps"], "samples": found})
        if self._upload.timeline:
            self._artifact("timeline", [folder / "timeline.json"])
        if self._upload.checkpoint:
            last = (folder / "checkpoints" / "last").resolve()
            self._artifact("checkpoint", [last, folder / "model.safetensors"])
        self._finish(EXIT_CODES.get(summary["status"], 1))

    def sweep(self, folder: Path, name: str) -> None:
        """Add a wandb run to the sweep's group, with what compares its runs."""
        import wandb

        self._run = run = self._init(
            {"sweep": name},
            folder,
            id=None,
            name=f"comparison {name}",
            group=self._group or name,
            job_type="comparison",
            tags=self._tags or None,
        )
        if (picture := folder / "comparison.png").exists():
            run.log({"comparison_picture": wandb.Image(str(picture))})
        for key in ("comparison", "comparison_groups"):
            if (table := folder / f"{key}.csv").exists():
                columns, *rows = csv.reader(table.read_text().splitlines())
                data = [[_number(cell) for cell in row] for row in rows]
                # Cells of a column may be numbers and empty.
                found = wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)
                run.log({key: found})
        self._finish(0)

    def abandon(self) -> None:
        """End wandb's process at once; what it has written so far stays."""
        from wandb.sdk import wandb_setup

        # The library offers no way to end it without waiting for it. At the program's end it
        # would wait once more.
        connection: Any = wandb_setup.singleton()._connection
        connection._cleanup()
        connection._proc._process.kill()
        connection._proc._process.wait()
        log.warning("what wandb was not told: %s", self._how_to_sync())

    def _init(self, config: Mapping[str, Any], folder: Path, **of_run: Any) -> Any:
        """A wandb run: an offline one where no other can be had in time."""
        # Else wandb reports on itself, offline too, and without a network the program's end would
        # wait for that (seen: 10 and 20 s). And it would tell in which file it found the key.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        def init(mode: Mode | None) -> Any:
            return wandb.init(
                project=self._project,
                entity=self._entity,
                dir=self._dir or str(folder),
                notes=self._notes,
                config=dict(config),
                mode=mode,
                settings=wandb.Settings(
                    allow_val_change=True,
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    disable_job_creation=True,
                    finish_timeout=self._finish_s,
                    finish_timeout_raises=True,
                    init_timeout=self._init_s,
                    save_code=False,
                    silent=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                    x_transaction_log_flush_interval=1.0,  # of 15 s; lost when this is killed
                ),
                **of_run,
            )

        mode = _mode(self._mode)
        if mode in (None, "online"):
            try:
                if wandb.login(prompt=False):
                    return init("online")
                login = command("wandb", "login")
                why = f"no key is configured ({login}, or WANDB_API_KEY)"
            except Exception as error:
                why = " ".join(str(error).split())
                wandb.teardown()  # its process takes the run for one in use
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
            said = "wandb was not done uploading after %g s; for the rest: %s"
            log.warning(said, self._finish_s, self._how_to_sync())
        finally:
            wandb.teardown()  # its process would stay until the program ends

    def _how_to_sync(self) -> str:
        return command("wandb", "sync", self._run.settings.sync_dir) if self._run else "nothing"

    def _artifact(self, kind: str, paths: Sequence[Path]) -> None:
        """Upload files and folders under one name, those that are there."""
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
    """The mode by its name of today; what older programs heed in the environment counts as well."""
    if given:
        return OLDER.get(given, cast("Mode", given))
    disabled = os.environ.get("WANDB_DISABLED", "").lower()
    if disabled in ("", "0", "false", "no", "off"):
        return None
    log.info("WANDB_DISABLED=%s: wandb is told nothing; tracker.mode=online tells it", disabled)
    return "disabled"


def _run_id(run: Tracked) -> str:
    """The identity that the run had before, or a new one, kept in its directory."""
    file = run.run_dir / RUN_FILE
    if run.resumed:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(file.read_text())["id"])
    identity = secrets.token_hex(4)
    write_json(file, {"id": identity})
    return identity


def _number(cell: str) -> float | str | None:
    """A cell of a table as what it is."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
