"""Writes the results of a run into its directory: model, summary, timeline and sample pictures."""

import errno
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ppll_cli.config.targets import make
from ppll_cli.config.weights import EMA_FILE, MODEL_FILE
from ppll_cli.errors import Interrupted, RunFailedError
from ppll_cli.job import checkpoint
from ppll_cli.job.job import Job
from ppll_cli.launch.failure import run_failed
from ppll_cli.launch.machines.others import Report
from ppll_cli.leaves.files import remove, write_json
from ppll_cli.leaves.random_states import seeded
from ppll_cli.models.plain import PlainModel
from ppll_cli.observe import timeline
from ppll_cli.observe.logs import only_warn, to_file
from ppll_cli.observe.spans import Restart, Traced
from ppll_cli.observe.tracker import Guarded


def write_results(
    job: Job,
    summarise: Callable[..., dict[str, Any]],
    tracker: Guarded,
    reports: Sequence[Report],
    restarts: Sequence[Restart],
    status: str,
    error: Exception | None = None,
) -> tuple[dict[str, Any], list[RunFailedError]]:
    """Write each result, even if another result cannot be written.

    Args:
        job: The job of the run.
        summarise: Makes the summary from an argument `status`.
        tracker: Receives the summary.
        reports: The last report of each worker; empty if the run ended with an error.
        restarts: The restarts to draw into the timeline.
        status: Status of the run. It becomes "failed" if there is no `error`, but a model file
            cannot be written.
        error: The error with which the run ended; None without one.

    Returns:
        The summary (empty if it could not be made), and an error for each model file or summary
            that could not be written. For a timeline or samples, only a warning is logged.
    """
    run_dir = Path(job.run_dir)
    last = run_dir / "checkpoints" / "last"
    problems: list[RunFailedError] = []
    has_model = False
    with _errors_into(problems, run_dir, MODEL_FILE):
        has_model = _write_model(last, run_dir, needed=status == "completed")
    if has_model and job.settings.optim.ema is not None:
        with _errors_into(problems, run_dir, EMA_FILE):
            checkpoint.write_model(last, run_dir / EMA_FILE, ema=True)
    drop_unfinished(run_dir)
    if problems and error is None:
        status, error = "failed", problems[0]
    summary: dict[str, Any] = {}
    with _errors_into(problems, run_dir, "summary.json"):
        summary = summarise(status=status)
        if error is not None:
            summary["error"] = str(error)
        write_json(run_dir / "summary.json", summary)
    if summary:
        with only_warn("the timeline could not be written"):
            _draw(job, run_dir, reports, restarts, summary)
        if has_model:
            with only_warn("no samples could be written"):
                write_samples(job, run_dir)
        tracker.end(summary)
    return summary, problems


def drop_unfinished(run_dir: Path) -> None:
    """Remove unfinished checkpoints, and model files that a killed process did not finish."""
    patterns = "checkpoints/.step-*", f".{MODEL_FILE}.*", f".{EMA_FILE}.*"
    for unfinished in [path for pattern in patterns for path in run_dir.glob(pattern)]:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # a worker of another machine may still write there
            remove(unfinished)


def _write_model(last: Path, run_dir: Path, needed: bool) -> bool:
    if last.exists():
        checkpoint.write_model(last, run_dir / MODEL_FILE)
        return True
    if needed:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(last))
    return False


def _draw(
    job: Job,
    run_dir: Path,
    reports: Sequence[Report],
    restarts: Sequence[Restart],
    summary: Mapping[str, Any],
) -> None:
    behind_s = _behind_s(job, reports)
    lanes = [
        [span.later(seconds) for span in report["trace"]]
        for report, seconds in zip(reports, behind_s, strict=False)
    ]
    restarted = {restart.worker for restart in restarts}
    # A restarted worker may lack a trace.
    if any(lanes) and all(lane or number in restarted for number, lane in enumerate(lanes)):
        names = [job.name(seat) for seat in job.seats]
        places = [job.place_name(seat) for seat in job.seats]
        title = timeline.title(summary)
        moved = [restart.later(behind_s[restart.worker]) for restart in restarts]
        traced = Traced(lanes, names, places, title, job.replicas, moved)
        timeline.write(run_dir, traced)


def write_samples(job: Job, run_dir: Path) -> None:
    """Replace `samples/` by pictures that the final model makes, if the data set can draw them."""
    draw = getattr(make("data", job.settings.data), "draw_samples", None)
    if draw is None:
        return
    model = PlainModel(job.units(), job.settings.seed)
    model.load_state_dict(load_file(run_dir / MODEL_FILE))
    model.eval()
    folder = run_dir / "samples"
    shutil.rmtree(folder, ignore_errors=True)
    # A resumed run draws the same pictures, even if the model draws random numbers in evaluation.
    with seeded(job.settings.seed), torch.no_grad():
        draw(model, folder)


def _behind_s(job: Job, reports: Sequence[Report]) -> list[float]:
    # `ahead_s` says how far a worker's clock is ahead of worker 0's. Only workers with process
    # groups measure it. It holds for all workers of a machine, because they share a clock.
    known = {
        job.home(seat): -report["ahead_s"]
        for seat, report in zip(job.seats, reports, strict=False)
        if report["ahead_s"] is not None
    }
    return [known.get(job.home(seat), 0.0) for seat in job.seats]


@contextmanager
def _errors_into(problems: list[RunFailedError], run_dir: Path, name: str) -> Iterator[None]:
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        problems.append(run_failed(error, run_dir, f"{name} could not be written"))
        to_file(traceback.format_exc())
