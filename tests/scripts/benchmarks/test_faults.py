"""Faults of the soak benchmark."""

from pathlib import Path

import pytest
import torch

from ppll_cli.job import checkpoint
from ppll_cli.job.manifest import Manifest
from scripts.benchmarks.faults import DAMAGES, Plan, damage


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, kind: str) -> None:
    for step in (5, 10):
        saved = checkpoint.save_stage(tmp_path, step, 0, {"model.a": torch.zeros(64)})
        checkpoint.finish(tmp_path, Manifest(step, 1, (), {}, (saved,)), keep=2)
    damage(Plan("vit ll 1", kind, "training", 2, 5, 0.0, 0.5), tmp_path)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 5
