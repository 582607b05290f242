"""Draws sample pictures with a run's final model, to show what it has learnt."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from ppll_cli.config.targets import make
from ppll_cli.config.weights import MODEL_FILE
from ppll_cli.job.job import Job
from ppll_cli.models.plain import PlainModel


def write_samples(job: Job, run_dir: Path) -> None:
    """Replace `samples/` by pictures of the final model, if the data set can draw pictures."""
    draw = getattr(make("data", job.settings.data), "draw_samples", None)
    if draw is None:
        return
    model = PlainModel(job.units(), job.settings.seed)
    model.load_state_dict(load_file(run_dir / MODEL_FILE))
    model.eval()
    folder = run_dir / "samples"
    shutil.rmtree(folder, ignore_errors=True)
    with torch.no_grad():
        draw(model, folder)
