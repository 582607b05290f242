"""A model that reads no images: the language model of docs/language_model.md."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ppll_cli import load_run
from ppll_cli.job import checkpoint
from ppll_cli.launch.evaluation import evaluate
from ppll_cli.observe.comparison import compare
from tests.conftest import assert_same
from tests.program import ppll_plan, ppll_run, restored
from tests.test_docs import FILE, LANGUAGE, sections

TINY = ["model.dim=8", "model.depth=4", "model.heads=2", "data.length=16", "data.pieces=40"]
TINY += ["batch_size=8", "max_steps=7", "eval_every=1", "device=cpu", "threads=1"]
SPLIT = "schedule.microbatches=2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files of the page."""
    for name, content in FILE.findall(sections("language_model.md")[LANGUAGE]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def train(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    own = ["--config-dir=conf", "model=decoder", "data=manual", f"hydra.run.dir={name}"]
    result = ppll_run(*own, "timeline=false", *TINY, *overrides, cwd=folder)
    assert result.returncode == 0, result.stderr
    summary: dict[str, Any] = json.loads((folder / name / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedules",
    [
        ["bp", "1f1b"],
        ["ll", "ppll"],
        ["bp", "gpipe", "interleaved", "zb_h1"],
    ],
    ids="-".join,
)
def test_schedules_learn_the_same_language_model(folder: Path, schedules: list[str]) -> None:
    found = {}
    for name in schedules:
        parts = [] if name in ("ll", "ppll") else [SPLIT]
        gpus = 1 if name in ("bp", "ll") else 2
        modules = "local.cuts=[blocks.0,blocks.2]"
        summary = train(folder, name, f"schedule={name}", f"gpus={gpus}", modules, *parts)
        found[name] = summary["test"], load_file(folder / name / "model.safetensors")
    (test, weights), *others = found.values()
    for other_test, other_weights in others:
        assert other_test == test
        assert_same(other_weights, weights)


@pytest.mark.slow
def test_options_that_measure_or_recompute_know_the_tokens(folder: Path) -> None:
    modules = "local.cuts=[blocks.2]"
    train(folder, "plain", "schedule=ll", "gpus=1", modules)
    train(folder, "other", "gpus=2", modules, "partition=profile", "recompute=true")
    plain, other = (load_file(folder / name / "model.safetensors") for name in ("plain", "other"))
    assert_same(other, plain)
    own = ["--config-dir=conf", "model=decoder", "data=manual", *TINY[:6], "gpus=2"]
    planned = ppll_plan(*own, "schedule=bp,1f1b,ppll", "device=cpu", cwd=folder)
    assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize(
    "method",
    ["auglocal", *(pytest.param(m, marks=pytest.mark.slow) for m in ("vit_blocks", "fba"))],
)
def test_methods_with_copies_of_units_train_a_language_model(folder: Path, method: str) -> None:
    held_out = "data.val_fraction=0.25"
    modules = ["local.cuts=[blocks.2]", f"local={method}", held_out]
    summary = train(folder, "run", "schedule=ll", "gpus=1", "max_steps=2", *modules)
    assert summary["per_module"][0]["aux_params"] > 0
    assert {"val", "test"} <= summary.keys()


def test_the_lowest_perplexity_is_the_best(folder: Path) -> None:
    """The learning rate is so high that the perplexity does not only fall."""
    rates = ["optim.lr=0.3", "optim.schedule=constant", "optim.warmup_epochs=0"]
    summary = train(folder, "run", "schedule=bp", "checkpoint.best=true", "max_steps=15", *rates)
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    values = {line["step"]: line["perplexity"] for line in lines if line["split"] == "test"}
    lowest = min(values, key=values.__getitem__)
    assert values[lowest] < max(values.values())
    assert checkpoint.best_step(folder / "run") == lowest
    (row,) = compare([folder / "run"]).rows
    assert row.best() == values[lowest]

    own = ["my_language.Manual", "my_language.Decoder"]
    with restored():
        sys.path.append(str(folder))
        assert evaluate(load_run(folder / "run", classes=own), "test").result == summary["test"]
