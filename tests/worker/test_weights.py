"""Runs whose initial weights come from a file."""

from pathlib import Path

import pytest
import torch

from ppll_cli.job.weights import read_weights
from ppll_cli.worker import state
from ppll_cli.worker.networks import Networks
from tests.conftest import assert_same, prepared
from tests.prepare.test_weights import TINY, changed, saved, tiny_model
from tests.worker.inside import run_inside

COURSE = ["data=digits", "model.dim=16", "model.depth=2", "model.heads=2", "max_steps=3"]


def test_a_worker_takes_the_tensors_of_its_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tiny_model()
    job = prepared(*COURSE, "gpus=2", f"weights={saved(tmp_path, tensors)}").job
    asked: list[str] = []

    class Noting(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr(state, "read_weights", lambda file: Noting(read_weights(file)))
    site = job.site(job.units())
    chunk = Networks(job, job.layout.chunks[1], site, torch.device("cpu"))
    assert job.weights is not None
    state.begin_with([chunk], job.weights)
    units = tuple(unit.name for unit, _ in chunk.units)
    assert units == ("blocks.1", "head")
    assert sorted(asked) == sorted(name for name in tensors if name.startswith(units))
    held = {
        f"{unit.name}.{name}": tensor
        for unit, network in chunk.units
        for name, tensor in network.state_dict().items()
    }
    assert_same(held, {name: tensors[name] for name in asked})


def test_tensors_missing_in_the_file_are_initialized_from_the_seed(tmp_path: Path) -> None:
    tensors = tiny_model()
    file = saved(tmp_path, changed(tensors))
    job = prepared(*TINY, f"weights={file}", "weights_partial=true").job
    chunk = Networks(job, job.layout.chunks[0], job.site(job.units()), torch.device("cpu"))
    assert job.weights is not None
    state.begin_with([chunk], job.weights)
    drawn = tiny_model(seed=0)
    for unit, network in chunk.units:
        for name, tensor in network.state_dict().items():
            key = f"{unit.name}.{name}"
            kept = key in ("embed.class_token", "head.fc.bias")
            assert torch.equal(tensor, drawn[key] if kept else tensors[key]), key


def test_local_learning_is_the_same_in_a_pipeline(tmp_path: Path) -> None:
    case = [*COURSE, f"weights={saved(tmp_path, tiny_model())}", "local.modules=3"]
    one = run_inside(tmp_path / "ll", *case, "schedule=ll")
    other = run_inside(tmp_path / "ppll", *case, "schedule=ppll", "gpus=2")
    assert_same(one.tensors, other.tensors)
    assert one.test == other.test
    without = run_inside(tmp_path / "seed", *COURSE, "local.modules=3", "schedule=ll")
    assert not torch.equal(
        one.tensors["model.blocks.0.mlp.0.weight"], without.tensors["model.blocks.0.mlp.0.weight"]
    )


def test_back_propagation_is_the_same_in_a_pipeline(tmp_path: Path) -> None:
    case = [*COURSE, f"weights={saved(tmp_path, tiny_model())}"]
    one = run_inside(tmp_path / "bp", *case, "schedule=bp")
    other = run_inside(tmp_path / "pp", *case, "schedule=pp", "gpus=2")
    assert_same(one.tensors, other.tensors)
