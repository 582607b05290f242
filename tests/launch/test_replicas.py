"""Replicas of stages: which results are equal, and which faults are found."""

import json
import math
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError, WorkerFailedError
from ppll_cli.transport.averages import BUCKET_BYTES
from tests.conftest import Runner, assert_same, prepared, resumed
from tests.worker.inside import run_inside

FEW_STEPS = "max_steps=4"  # an epoch with its short last batch, and the start of another epoch
DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=21"]
DATA += ["data.test_samples=13", "batch_size=8", "epochs=4", "eval_every=1"]  # 21 = 2 * 8 + 5
VIT = ["model=vit", "model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=14", "optim=sgd", "optim.lr=0.05"]
SPLIT = [*VIT, FEW_STEPS, *DATA]
REPLICAS = "replicas=2"
CLIPPED = ["optim.clip_norm=0.1"]
SYNCED = ["schedule=bp", REPLICAS, "sync_batchnorm=true"]


@pytest.mark.parametrize(
    ("more", "shape"),
    [
        pytest.param([], ["bp", "gpus=2"], marks=pytest.mark.slow),
        pytest.param([], ["gpipe", "gpus=4", "schedule.microbatches=1"], marks=pytest.mark.slow),
        pytest.param(CLIPPED, ["bp", "gpus=2"], marks=pytest.mark.slow),
        (CLIPPED, ["pp", "gpus=4"]),
    ],
    ids=["plain", "plain pipeline", "clipped", "clipped pipeline"],
)
def test_two_replicas_train_the_same_as_two_micro_batches(
    run: Runner, more: list[str], shape: list[str]
) -> None:
    """There is no BatchNorm.

    There is dropout, and a last batch that is split into 3 and 2 samples.
    """
    one = ["schedule=bp", "gpus=1", "schedule.microbatches=2"]
    expected = run(*one, *SPLIT, *more)
    name, gpus, *others = shape
    found = run(f"schedule={name}", gpus, *others, REPLICAS, *SPLIT, *more)
    assert_same(found.tensors(), expected.tensors())
    assert found.summary["gpus"] == len(found.summary["devices"]) == int(gpus[-1])
    assert found.summary["replicas"] == 2
    for split in ("test", "train"):
        assert math.isclose(found.summary[split]["loss"], expected.summary[split]["loss"])
    assert found.test["accuracy"] == expected.test["accuracy"]


def test_gradients_in_several_buckets_are_averaged(run: Runner) -> None:
    common = ["schedule=bp", *SPLIT, "model.dim=128", "max_steps=3"]
    expected = run(*common, "schedule.microbatches=2")
    found = run(*common, REPLICAS)
    assert sum(module["params"] for module in found.summary["per_module"]) * 4 > 3 * BUCKET_BYTES
    assert_same(found.tensors(), expected.tensors())


@pytest.mark.slow
@pytest.mark.parametrize("case", [VIT, RESNET], ids=["vit", "resnet"])
def test_ppll_is_sequential_local_learning(run: Runner, case: list[str]) -> None:
    """The buffers of BatchNorm that are evaluated and saved are those of the first replica."""
    common = [REPLICAS, "local.modules=4", FEW_STEPS, *case, *DATA]
    expected = run("schedule=ll", *common)
    found = run("schedule=ppll", "gpus=4", *common)
    assert_same(found.tensors(), expected.tensors())
    assert found.summary["per_module"] == expected.summary["per_module"]
    places = [(stage["index"], stage["replica"]) for stage in found.summary["stages"]]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (edge,) = found.summary["edges"]
    whole = run("schedule=ppll", "gpus=2", *common, "replicas=1").summary["edges"][0]
    assert edge == whole  # together, the replicas send what one worker sends


@pytest.mark.slow
def test_replicas_remember_the_same(run: Runner) -> None:
    """Training reads buffers, which checkpoints and evaluations took from the first replica.

    So checkpoints and evaluations changed the training, and a resumed run trained something else.
    """
    method = "local._target_=tests.remembering.Remembering"
    common = [REPLICAS, method, "local.modules=2", "eval_every=4", *VIT, *DATA[:-1]]
    expected = run("schedule=ll", *common, "max_steps=4").tensors()
    stopped = run("schedule=ppll", "gpus=4", *common, "max_steps=2")
    found = resumed(stopped, method, "max_steps=4", "gpus=2", "eval_every=1")
    assert_same(found.tensors(), expected)


@pytest.mark.slow
def test_weights_travel_upstream_in_each_replica(run: Runner, tmp_path: Path) -> None:
    """Each replica of a stage watches its own next stage.

    The moving averages are equal in all replicas.
    """
    common = [REPLICAS, "local=manpp", "local.modules=2", "max_steps=4", *RESNET, *DATA]
    expected = run_inside(tmp_path / "inside", "schedule=ll", *common)
    found = run("schedule=ppll", "gpus=4", *common)
    assert_same(found.tensors(), expected.tensors)
    down, up = found.summary["edges"]
    assert (up["from"], up["to"], up["names"]) == (1, 0, ["weights.layer2.1"])
    tensors = found.tensors()
    unit = [n for n in tensors if n.startswith("watched.layer2.1.1.")]
    assert up["bytes_sent"] == 2 * 4 * sum(tensors[name].nbytes for name in unit)
    assert down["names"] == ["label", "x"]


def test_synced_batch_norm_sees_the_whole_batch(run: Runner, tmp_path: Path) -> None:
    """Results equal those of one device, except for rounding. The replicas have 3 and 2 samples."""
    common = ["schedule=ll", "local=dgl", "local.modules=3", *RESNET, *DATA, "max_steps=4"]
    common += ["optim.lr=0.005"]
    found = run("sync_batchnorm=true", "replicas=2", *common).tensors()
    expected = run_inside(tmp_path / "one", "gpus=1", *common).tensors
    alone = run_inside(tmp_path / "alone", "replicas=2", *common).tensors
    name = next(name for name in expected if name.endswith("running_mean"))
    assert not alone[name].allclose(expected[name], rtol=1e-2)
    for name, tensor in expected.items():
        apart = (found[name] - tensor).double().norm()
        assert apart <= 1e-3 * tensor.double().norm() + 1e-4, name


@pytest.mark.slow
def test_replicas_can_have_shares_of_different_sizes(run: Runner) -> None:
    """Three replicas split 8 samples into 3, 3 and 2, and 5 samples into 2, 2 and 1."""
    common = ["schedule=bp", "optim=sgd", "optim.lr=0.1", *SPLIT]
    found = run("replicas=3", *common)
    others = run("gpus=1", "schedule.microbatches=3", *common).tensors()
    for name, tensor in found.tensors().items():
        assert tensor.allclose(others[name], atol=1e-5), name
    lines = [json.loads(t) for t in (found.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train", "test", "train", "test"]


@pytest.mark.slow
def test_a_resumed_run_with_replicas_trains_the_same(run: Runner) -> None:
    common = ["schedule=ppll", "gpus=2", REPLICAS, *RESNET, *DATA, "checkpoint.every=3"]
    expected = run(*common, FEW_STEPS)
    stopped = run(*common, "max_steps=3")
    assert_same(resumed(stopped, FEW_STEPS).tensors(), expected.tensors())


def test_a_nonfinite_loss_stops_all_replicas(run: Runner) -> None:
    with pytest.raises(WorkerFailedError, match=r"stage 0 replica \d .*is not finite"):
        run("schedule=bp", REPLICAS, *VIT, *DATA, "max_steps=9", "optim=sgd", "optim.lr=1e30")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gpus=3", "replicas=2"], "replicas=2: gpus=3 .* use gpus=4 or gpus=2"),
        (["gpus=1", "replicas=2"], "replicas=2: gpus=1 .* use gpus=2"),
        (["replicas=9", "batch_size=8"], "replicas=9: a batch of 8 samples"),
        (["gpus=6", "replicas=6", *DATA], "replicas=6: the last batch of an epoch has 5"),
        (
            [*DATA, *RESNET, "gpus=4", REPLICAS, "batch_size=3", "local=dgl"],
            "leaves a micro-batch of one sample.* or replicas, or sync_batchnorm=true",
        ),
        (
            [*DATA, *RESNET, *SYNCED, "schedule.microbatches=4"],
            "sync_batchnorm=true: replicas would split a batch of 5 samples into different numbers",
        ),
        (["sync_batchnorm=true", "compile=true"], "sync_batchnorm=true: torch.compile cannot"),
    ],
)
def test_invalid_settings_of_replicas_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(*overrides)
