"""Huge numbers in the configuration: the program refuses them or uses them, without delay.

`model.dim=99999999999` once made the program search for divisors for an hour.
"""

import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from ppll_cli.config import settings
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import MOST_SIZE
from ppll_cli.models.vit import ViT
from ppll_cli.prepare.preparation import prepare
from tests.conftest import compose_config

SMALL = ["data=synthetic", "data.size=8", "data.train_samples=53", "data.test_samples=7"]
SMALL += ["batch_size=8", "device=cpu", "threads=1", "gpus=2"]
VIT = [*SMALL, "model.dim=16", "model.depth=3", "model.heads=2"]
HUGE = (10**11, 2**63)
LIMIT_S = 300
"""Limit in seconds. All tests together take some seconds; a loop over one huge number takes many
minutes or years."""


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Fail a test that does not end."""

    def end(*_: object) -> None:
        pytest.fail(f"it continues after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def integers(config: Mapping[str, Any], *groups: str) -> Iterator[str]:
    """Yield the keys that may accept a whole number: those whose value is one, or null."""
    for key, value in config.items():
        if isinstance(value, dict) and key != "data":
            yield from integers(value, *groups, key)
        elif value is None or (isinstance(value, int) and not isinstance(value, bool)):
            yield ".".join([*groups, key])


def changed(config: Mapping[str, Any], key: str, value: int) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {**config, head: changed(config[head], rest, value) if rest else value}


SLOW = ["vit", "dgl", "predsim", "another resnet"]
CASES = {
    "vit": VIT,
    "vit of 1f1b": [*VIT, "schedule=1f1b", "optim=sgd", "checkpoint.best=true"],
    "flops": [*VIT, "partition=flops", "local=vit_blocks"],
    "dgl": [*VIT, "local=dgl"],
    "infopro": [*VIT, "local=infopro"],
    "predsim": [*VIT, "local=predsim"],
    "fba": [*VIT, "fba=on"],
    "auglocal": [*VIT, "local=auglocal"],
    "man": [*VIT, "local=man"],
    "resnet": [*SMALL, "model=resnet32", "model.depth=8"],
    "another resnet": [*SMALL, "model=resnet18"],
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, c in CASES.items()],
)
def test_a_huge_number_causes_no_long_loop(case: list[str]) -> None:
    config, _ = compose_config(case)
    keys = list(integers(config))
    assert "epochs" in keys
    if case is not VIT:  # keys outside of these groups are the same in all cases
        keys = [key for key in keys if key.startswith(("model.", "local.", "fba."))]
    assert any(key.startswith("model.") for key in keys)
    lines = []
    for key in keys:
        for value in HUGE:
            try:
                prepare(settings.parse(changed(config, key, value)), "unused")
            except ConfigError as error:
                lines.append(str(error))
    assert lines
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("group", "case", "key"),
    [
        ("model", VIT, "dim"),
        ("model", VIT, "heads"),
        ("model", VIT, "patch"),
        ("model", [*SMALL, "model=edsr"], "width"),
        ("model", [*SMALL, "model=retinanet"], "width"),
        ("local", [*VIT, "local=dgl"], "hidden"),
        ("local", [*VIT, "local=predsim"], "width"),
        ("local", [*VIT, "local=infopro"], "decoder_width"),
    ],
)
def test_a_huge_size_is_refused(group: str, case: list[str], key: str) -> None:
    config, _ = compose_config(case)
    own = {name: value for name, value in config[group].items() if name not in ("modules", "cuts")}
    refused = rf"^{group}\.{key}={10**11}: must be less than or equal to {MOST_SIZE}"
    with pytest.raises(ConfigError, match=refused):
        make(group, {**own, key: 10**11})


def test_divisors_of_a_large_width_are_found_quickly() -> None:
    with pytest.raises(ConfigError, match=r"possible: 1, 2, 4, .*, 8388608, 16777216$"):
        ViT(dim=MOST_SIZE, depth=1, heads=3, patch=4, mlp_ratio=1.0)


def test_a_huge_ratio_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.mlp_ratio=1000000000.0: makes layers wider"):
        ViT(dim=16, depth=1, heads=2, patch=4, mlp_ratio=1e9)


def test_a_huge_depth_of_channels_is_refused() -> None:
    config, _ = compose_config([*VIT, "transport.depth=1025"])
    with pytest.raises(ConfigError, match=r"transport.depth=1025: must be less than or equal"):
        settings.parse(config)
