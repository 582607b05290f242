"""Makes run directories of finished runs, by training inside the test."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ppll_cli.config import settings
from ppll_cli.job.checkpoint import finish, unfinished_folder, write_model
from ppll_cli.job.manifest import Manifest, SavedFile
from ppll_cli.launch import beginning
from ppll_cli.prepare.preparation import prepare
from tests.conftest import compose_config
from tests.worker.inside import execute


@dataclass(frozen=True)
class Finished:
    """A run directory that `ppll-eval` can evaluate.

    Attributes:
        folder: The directory.
        test: The value of `test` in a run's `summary.json`.
        test_ema: The value of `test_ema` there; empty if there are no averages.
        step: Optimizer steps done.
    """

    folder: Path
    test: dict[str, float]
    test_ema: dict[str, float]
    step: int


def finished_run(folder: Path, *overrides: str) -> Finished:
    """Train, and write the record, a checkpoint and the model."""
    usual = ["device=cpu", "threads=1", "checkpoint.every=1000", "timeline=false"]
    config, choices = compose_config([*usual, *overrides])
    folder.mkdir(parents=True)
    prepared = prepare(settings.parse(config), str(folder))
    beginning.record(folder, config, choices, prepared)
    outcome = execute(prepared.job)
    step, module = max(outcome.test)
    place = unfinished_folder(folder, step)
    saved = tuple(
        SavedFile(path.name, len(content := path.read_bytes()), hashlib.sha256(content).hexdigest())
        for path in sorted(place.glob("stage-*.safetensors"))
    )
    last = finish(folder, Manifest(step, 1, prepared.cuts, {}, saved), keep=2)
    write_model(last, folder / "model.safetensors")
    samples = prepared.job.course.samples["test"]
    test, test_ema = (
        {"loss": found[step, module][0] / samples, **found[step, module][1]} if found else {}
        for found in (outcome.test, outcome.test_ema)
    )
    return Finished(folder, test, test_ema, step)
