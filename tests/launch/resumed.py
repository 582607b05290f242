"""Runs that are stopped and resumed, and the runs that they must equal."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ppll_cli.config import settings
from ppll_cli.launch.run import Run
from tests.conftest import Result, assert_same, compose_config

DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=37"]  # 4 * 8 + 5
DATA += ["data.test_samples=7", "data.pad=1", "data.flip=true", "batch_size=8", "epochs=5"]
DATA += [
    "eval_every=2",
    "log_every=3",
    "optim.schedule=cosine",
    "device=cpu",
    "threads=1",
    "timeline=false",
]
VIT = ["model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=14", "optim=sgd", "optim.lr=0.05"]  # BatchNorm
CLIPPED = "optim.clip_norm=0.1"  # smaller than all norms

CASES: dict[str, tuple[list[str], list[str]]] = {
    # Overrides with which a run is started, and changes with which it is resumed
    "bp": (["schedule=bp", *VIT, CLIPPED], []),
    "ll": (["schedule=ll", "local=dgl", "local.modules=4", *RESNET, CLIPPED], []),
    "ll, modules as stages": (["schedule=ll", *VIT], ["gpus=3", "partition=params"]),
    "gpipe": (["schedule=gpipe", *RESNET, CLIPPED], ["gpus=3"]),
    "ppll": (["local=vit_blocks", "local.modules=4", *VIT, CLIPPED], ["gpus=3"]),
    "ppll, modules as stages": (["gpus=3", *VIT], ["gpus=2"]),
    "weights": (["local=manpp", "local.lag=3", "local.modules=4", *RESNET], ["gpus=3"]),
    "averages": (["local=dgl", "local.modules=4", "optim.ema=0.9", *RESNET], ["gpus=3"]),
    "bank": (["fba=on", "local.modules=5", *RESNET], ["gpus=4", "transport=queue"]),
}


def train(run_dir: Path, *overrides: str) -> Result:
    config, choices = compose_config([*DATA, *overrides])
    run_dir.mkdir()
    return Result(Run(settings.parse(config), config, choices, run_dir).execute(), run_dir)


def lines(result: Result) -> list[dict[str, Any]]:
    """Return the lines of the metrics file without the keys that depend on time or partition."""
    found = [json.loads(x) for x in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    without = {"samples_per_second", "seconds", "stage"}
    return [{k: line[k] for k in line if k not in without} for line in found]


def assert_each_once(result: Result) -> None:
    """Check that no step was measured twice."""
    seen = Counter((line["step"], line["split"], line["module"]) for line in lines(result))
    assert set(seen.values()) == {1}


def assert_as_if_unbroken(result: Result, expected: Result) -> None:
    assert_same(result.tensors(), expected.tensors())
    mine, other = result.summary, expected.summary
    assert (mine["status"], mine["steps"]) == ("completed", other["steps"])
    for key in ("test", "per_module", "modules", "epochs"):
        assert mine[key] == other[key]
    assert mine["train"]["loss"] == other["train"]["loss"]
    assert_each_once(result)
    found, wanted = lines(result), lines(expected)
    assert all(line in found for line in wanted)
    # There may be an additional evaluation where the run stopped. Training reports are the same.
    assert all(line in wanted for line in found if line["split"] == "train")
    assert mine.get("test_ema") == other.get("test_ema")
    models = sorted(path.name for path in expected.run_dir.glob("*.safetensors"))
    assert ("model_ema.safetensors" in models) == ("test_ema" in other)
    for model in models:
        assert (result.run_dir / model).read_bytes() == (expected.run_dir / model).read_bytes()


def checkpoint(result: Result, step: int) -> Path:
    return result.run_dir / "checkpoints" / f"step-{step}"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder, by path."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
