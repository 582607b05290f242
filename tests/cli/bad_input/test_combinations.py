"""A combination of values that are valid alone trains, or is refused."""

import multiprocessing
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ppll_cli.errors import ConfigError
from tests.conftest import Runner

TINY = ["data=synthetic", "data.size=8", "data.train_samples=21", "data.test_samples=5"]
TINY += ["batch_size=4", "device=cpu"]
SAMPLES, HELD_OUT = 21, 6
UNITS = {
    "vit": ["embed", "blocks.0", "blocks.1", "blocks.2", "head"],
    "resnet": ["stem", "layer1.0", "layer2.0", "layer3.0", "head"],
}
VIT = ["model=vit", "model.dim=16", "model.depth=3", "model.heads=2"]
MODEL = {"vit": VIT, "resnet": ["model=resnet32", "model.depth=8"]}
LIMIT_S = 60.0


def key(name: str, *values: object) -> st.SearchStrategy[list[str]]:
    """Draw an override that gives this key one of the values, or no override."""
    return st.sampled_from([[], *([f"{name}={value}"] for value in values)])


@st.composite
def combinations(draw: st.DrawFn) -> list[str]:
    """Draw overrides of a small run. Each value is valid alone; their combination may not be."""
    model = draw(st.sampled_from(sorted(MODEL)))
    overrides = [*TINY, *MODEL[model], "threads=1", "max_steps=2", f"progress_limit={LIMIT_S}"]
    if model == "vit":
        overrides += draw(key("model.pooling", "mean")) + draw(key("model.dropout", 0.1))
    overrides += draw(key("schedule", "bp", "ll", "pp", "gpipe", "1f1b", "ppll"))
    overrides += draw(key("schedule.microbatches", 1, 2, 3, 5))
    overrides += draw(key("gpus", 1, 2, 3, 4, 5))
    methods = [
        "greedy",
        "dgl",
        "predsim",
        "infopro",
        "auglocal",
        "vit_blocks",
        "fba",
        "man",
        "manpp",
    ]
    overrides += draw(key("local", *methods) | st.just(["fba=on"]))
    cuts = draw(st.lists(st.sampled_from(UNITS[model][1:]), max_size=3, unique=True))
    if draw(st.integers(0, 3)):
        cuts.sort(key=UNITS[model].index)
    written = f"[{','.join(cuts)}]"
    overrides += draw(key("local.modules", 1, 2, 3, 4, 5) | key("local.cuts", written))
    partition = draw(key("partition", "uniform", "params", "flops", "profile", "manual"))
    overrides += partition
    if partition == ["partition=manual"]:
        overrides += [f"partition.cuts={written}"]
    overrides += draw(key("transport", "ring", "queue")) + draw(key("transport.depth", 1, 3))
    overrides += draw(key("batch_size", 1, 2, 7, 21, 22)) + draw(key("data.drop_last", "true"))
    overrides += draw(key("data.val_fraction", 0.3)) + draw(key("data.eval_limit", 1))
    overrides += draw(key("data.pad", 1)) + draw(key("data.flip", "true"))
    overrides += draw(key("optim", "sgd", "adamw")) + draw(key("optim.clip_norm", 0.5))
    overrides += draw(key("optim.schedule", "constant", "step"))
    overrides += draw(key("optim.nonfinite", "skip")) + draw(key("precision", "fp32", "bf16"))
    overrides += draw(key("epochs", 1, 2)) + draw(key("eval_every", 1))
    overrides += draw(key("checkpoint.every", 1)) + draw(key("checkpoint.best", "true"))
    return overrides + draw(key("checkpoint.keep", 1)) + draw(key("seed", 1, 2**63 - 1))


@pytest.mark.slow
@examples(
    max_examples=6,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(overrides=combinations())
def test_any_combination_of_values_trains_or_is_refused(
    overrides: list[str], run: Runner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    started_s = time.monotonic()
    found: dict[str, Any] | ConfigError
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))
        try:
            found = run(*overrides).summary
        except ConfigError as error:
            found = error
    assert time.monotonic() - started_s < LIMIT_S
    assert not multiprocessing.active_children()
    if isinstance(found, ConfigError):
        groups = {override.partition("=")[0].partition(".")[0] for override in overrides}
        assert "\n" not in str(found)
        assert found.key.partition(".")[0] in {*groups, "gpus"}  # by default `gpus` may be 2
        return
    asked = dict(override.split("=", 1) for override in overrides)
    samples = SAMPLES - (HELD_OUT if "data.val_fraction" in asked else 0)
    batch_size = int(asked["batch_size"])
    per_epoch = samples // batch_size if "data.drop_last" in asked else -(-samples // batch_size)
    steps = min(2, int(asked.get("epochs", 15)) * per_epoch)
    assert (found["status"], found["steps"]) == ("completed", steps)
    assert found["test"]["loss"] is not None
