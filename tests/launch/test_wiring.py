"""Workers that are connected over the network learn the same as workers with shared memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ppll_cli.launch import run as running
from ppll_cli.launch import wiring
from ppll_cli.prepare.preparation import Prepared, prepare
from ppll_cli.transport.groups import Group
from ppll_cli.transport.ring import RingTransport
from tests.conftest import Runner, assert_same_run, prepared

DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=21"]
DATA += ["data.test_samples=23", "batch_size=8", "epochs=4", "eval_every=1"]  # 21 = 2 * 8 + 5
VIT = ["model=vit", "model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=14", "optim=sgd", "optim.lr=0.05"]

Place = Callable[..., None]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return a function that sets the machine of each worker."""

    def place(*homes: int) -> None:
        def placed(*arguments: object) -> Prepared:
            found = prepare(*arguments)  # type: ignore[arg-type]
            return replace(found, job=replace(found.job, homes=homes))

        monkeypatch.setattr(running, "prepare", placed)

    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ["schedule=ppll", "fba=on", "local.modules=4", *RESNET],
        ["schedule=ppll", "local=infopro", "local.modules=4", "optim.clip_norm=0.1", *VIT],
        ["schedule=gpipe", "optim.clip_norm=0.1", *VIT],
        ["schedule=1f1b", *RESNET],
        [
            "schedule=interleaved",
            "optim.clip_norm=0.1",
            "gpus=2",
            "model.depth=8",
            *VIT[:2],
            *VIT[3:],
        ],
        ["schedule=pp", "transport=queue", *VIT],
    ],
    ids=["ppll, bank", "ppll, image", "gpipe, norms", "1f1b", "interleaved", "pp"],
)
def test_network_channels_train_the_same_as_shared_memory(
    run: Runner, place: Place, case: list[str]
) -> None:
    common = ["gpus=4", "max_steps=9", *DATA, *case]
    expected = run(*common)
    place(*((0, 0, 1, 2) if len(expected.summary["devices"]) == 4 else (0, 1)))
    found = run(*common)
    assert_same_run(found, expected)
    assert found.summary["edges"] == expected.summary["edges"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "case", "homes"),
    [
        ("gpipe", ["gpus=3"], (0, 1, 2)),
        ("ppll", ["gpus=4", "replicas=2"], (0, 1, 1, 2)),
        ("ppll", ["gpus=3"], (0, 1, 2)),
        ("gpipe", ["gpus=4", "replicas=2"], (0, 1, 1, 2)),
    ],
)
def test_separate_groups_for_bytes_train_the_same(
    run: Runner,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    case: list[str],
    homes: tuple[int, ...],
) -> None:
    """On CUDA, tensors travel in groups of their own. Here gloo under another name carries them."""
    common = [f"schedule={schedule}", "max_steps=4", "optim.clip_norm=0.1", *DATA, *VIT, *case]
    expected = run(*common)
    monkeypatch.setattr(wiring, "backend", lambda places: "cpu:gloo")
    place(*homes)
    assert_same_run(run(*common), expected)


@pytest.mark.parametrize(
    "homes",
    [
        pytest.param((0, 0, 1, 1), id="stages", marks=pytest.mark.slow),
        pytest.param((0, 1, 0, 1), id="replicas"),
    ],
)
def test_replicas_on_several_machines_train_the_same(
    run: Runner, place: Place, homes: tuple[int, ...]
) -> None:
    common = ["gpus=4", "replicas=2", "max_steps=4", *DATA, *VIT]
    expected = run(*common)
    place(*homes)
    assert_same_run(run(*common), expected)


def test_wire_dtype_bf16_halves_the_bytes_between_machines(run: Runner, place: Place) -> None:
    """Labels are sent without a loss of bits. The learned weights differ only a little."""
    common = ["gpus=2", "max_steps=9", *DATA, *VIT]
    expected = run(*common)
    place(0, 1)
    found = run(*common, "transport.wire_dtype=bf16")
    (edge,), (whole,) = found.summary["edges"], expected.summary["edges"]
    assert 0.5 < edge["bytes_sent"] / whole["bytes_sent"] < 0.52
    assert found.test["loss"] != expected.test["loss"]
    assert found.test["loss"] == pytest.approx(expected.test["loss"], rel=0.02)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("schedule", ["ppll", "gpipe", "1f1b"])
def test_network_channels_train_the_same_on_cuda(
    run: Runner, place: Place, monkeypatch: pytest.MonkeyPatch, schedule: str, devices: int
) -> None:
    """NCCL is used if each worker has its own device.

    On a shared device, messages go over the host.
    """
    if devices > torch.cuda.device_count():
        pytest.skip(f"there are {torch.cuda.device_count()} CUDA devices, and this takes {devices}")
    common = [f"schedule={schedule}", "gpus=2", "max_steps=9", *DATA, *RESNET]
    common += ["device=cuda", "deterministic=true", "optim.clip_norm=0.5"]
    if devices == 1:
        common += ["oversubscribe=true"]
        monkeypatch.setattr(wiring, "backend", lambda places: "gloo")
    expected = run(*common)
    place(0, 1)
    found = run(*common)
    assert_same_run(found, expected)
    assert found.summary["edges"] == expected.summary["edges"]


def test_nccl_sends_bytes_if_each_end_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The channel that tells other replicas the next item sends no tensors."""
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    job = prepared("gpus=4", "replicas=2", "schedule=gpipe", *DATA, *VIT).job
    on_cuda = replace(job, homes=(0, 1, 1, 1), devices=("cuda:0", "cuda:0", "cuda:1", "cuda:2"))
    groups = wiring._groups(on_cuda)
    first, second, third, fourth = [f"stage {s} replica {r}" for s in (0, 1) for r in (0, 1)]
    assert groups == {
        "replicas of stage 0": Group((0, 1), "nccl"),
        "replicas of stage 1": Group((2, 3), "nccl"),
        f"activations 1, {first} to {third}": Group((0, 2), "gloo", directed=True),
        f"activations 1, {first} to {third}, bytes": Group((0, 2), "nccl", directed=True),
        f"gradients 0, {third} to {first}": Group((2, 0), "gloo", directed=True),
        f"gradients 0, {third} to {first}, bytes": Group((2, 0), "nccl", directed=True),
        f"items, {first} to {second}": Group((0, 1), "gloo", directed=True),
    }
    on_cpu = wiring._groups(replace(on_cuda, devices=("cpu",) * 4))
    assert {group.backend for group in on_cpu.values()} == {"gloo"}
    assert [*on_cpu] == [name for name in groups if not name.endswith("bytes")]
    assert fourth not in "".join(groups)  # the sender is on the same machine


@pytest.mark.parametrize(
    ("case", "homes", "expected"),
    [
        (["schedule=ppll"], (0, 0, 1, 1), [None, 0, 1, None]),
        (["schedule=gpipe"], (0, 0, 0, 1), [None, None, 0, 1]),
        (["schedule=ppll", "replicas=2"], (0, 0, 1, 1), [0, 1, 2, 3]),
        (["schedule=ppll"], (), [None] * 4),
    ],
)
def test_only_workers_of_a_group_have_a_rank(
    case: list[str], homes: tuple[int, ...], expected: list[int | None]
) -> None:
    job = replace(prepared("gpus=4", *DATA, *VIT, *case).job, homes=homes)
    ends = wiring.wire(job, RingTransport(depth=1), "file:///never/opened", "lo")
    groups = [ends[seat].groups for seat in job.seats]
    assert [own and own.rank for own in groups] == expected
    for own in filter(None, groups):
        assert own.workers == len([*filter(None, groups)])
        for group in own.groups.values():
            assert {*group.ranks} <= {*range(own.workers)}
