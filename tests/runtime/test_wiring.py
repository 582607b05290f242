"""Workers whose channels go over the network learn the same as those that share memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ppll_cli.runtime import run as running
from ppll_cli.runtime.prepare import Prepared, prepare
from tests.conftest import Runner, assert_same_run

DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=53"]
DATA += ["data.test_samples=23", "batch_size=8", "epochs=4", "eval_every=1"]  # 53 = 6 * 8 + 5
VIT = ["model=vit", "model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=14", "optim=sgd", "optim.lr=0.05"]

Place = Callable[..., None]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Says which machine each worker is taken to be on."""

    def place(*homes: int) -> None:
        def placed(*arguments: object) -> Prepared:
            prepared = prepare(*arguments)  # type: ignore[arg-type]
            return replace(prepared, job=replace(prepared.job, homes=homes))

        monkeypatch.setattr(running, "prepare", placed)

    return place


@pytest.mark.parametrize(
    "case",
    [
        ["schedule=ppll", "fba=on", "local.modules=4", *RESNET],
        ["schedule=ppll", "local=infopro", "local.modules=4", "optim.clip_norm=0.1", *VIT],
        ["schedule=gpipe", "optim.clip_norm=0.1", *VIT],
        ["schedule=1f1b", *RESNET],
        ["schedule=pp", "transport=naive", *VIT],
    ],
    ids=["ppll, bank", "ppll, image", "gpipe, norms", "1f1b", "pp"],
)
def test_channels_over_the_network_change_nothing(
    run: Runner, place: Place, case: list[str]
) -> None:
    common = ["gpus=4", "max_steps=9", *DATA, *case]
    expected = run(*common)
    place(0, 0, 1, 2)
    found = run(*common)
    assert_same_run(found, expected)
    assert found.summary["edges"] == expected.summary["edges"]


@pytest.mark.parametrize("homes", [(0, 0, 1, 1), (0, 1, 0, 1)], ids=["stages", "replicas"])
def test_replicas_over_the_network(run: Runner, place: Place, homes: tuple[int, ...]) -> None:
    common = ["gpus=4", "replicas=2", "max_steps=9", *DATA, *VIT]
    expected = run(*common)
    place(*homes)
    assert_same_run(run(*common), expected)


def test_half_as_much_may_cross(run: Runner, place: Place) -> None:
    """The labels stay what they are; what is learnt is nearly the same."""
    common = ["gpus=2", "max_steps=9", *DATA, *VIT]
    expected = run(*common)
    place(0, 1)
    found = run(*common, "transport.wire_dtype=bf16")
    (edge,), (whole,) = found.summary["edges"], expected.summary["edges"]
    assert 0.5 < edge["bytes_sent"] / whole["bytes_sent"] < 0.52
    assert found.test["loss"] != expected.test["loss"]
    assert found.test["loss"] == pytest.approx(expected.test["loss"], rel=0.02)
