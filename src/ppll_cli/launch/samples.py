"""Pictures of what a run has learnt, made at its end from the weights that it leaves."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from ppll_cli.config.targets import make
from ppll_cli.job.job import Job
from ppll_cli.models.plain import PlainModel


def write_samples(job: Job, run_dir: Path) -> None:
    """Have the data set write them into `samples/`, if it can, in the place of earlier ones."""
    draw = getattr(make("data", job.data), "draw_samples", None)
    if draw is None:
        return
    model = PlainModel(job.units(), job.seed)
    model.load_state_dict(load_file(run_dir / "model.safetensors"))
    model.eval()
    folder = run_dir / "samples"
    shutil.rmtree(folder, ignore_errors=True)
    with torch.no_grad():
        draw(model, folder)
