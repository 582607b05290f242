"""The property that everything else stands on: what must be equal is equal, bit for bit."""

import pytest

from tests.conftest import Runner, assert_same, own_model

STEPS = "max_steps=20"
FEW_STEPS = "max_steps=9"  # an epoch, with its short last batch, and the start of another
DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=53"]
DATA += ["data.test_samples=7", "batch_size=8", "epochs=4", "eval_every=1"]  # 53 = 6 * 8 + 5
VIT = ["model=vit", "model.dim=16", "model.depth=4", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=14"]
SGD = ["optim=sgd", "optim.lr=0.05"]


@pytest.mark.parametrize(
    "case",
    [
        ["local=vit_blocks", "local.modules=4", *VIT],
        ["local=dgl", "local.modules=5", *RESNET, *SGD, "optim.clip_norm=0.5"],
        ["local.cuts=[blocks.1,blocks.3]", *VIT, "model.pooling=mean", "optim.clip_norm=0.1"],
    ],
    ids=["vit", "resnet", "cuts"],
)
def test_ppll_is_sequential_local_learning(run: Runner, case: list[str]) -> None:
    """However the modules are grouped into stages, they learn the same."""
    modules = 3 if "local.cuts" in case[0] else int(case[1][-1])
    expected = run("schedule=ll", "gpus=1", STEPS, *DATA, *case).tensors()
    assert any(name.startswith("auxiliary.") for name in expected)
    for gpus in range(1, min(modules, 4) + 1):
        pipelined = run("schedule=ppll", f"gpus={gpus}", STEPS, *DATA, *case)
        assert pipelined.summary["gpus"] == gpus
        assert_same(pipelined.tensors(), expected)


EVERY_UNIT = {"resnet": [*RESNET, *SGD, "local.modules=8"], "vit": [*VIT, "local.modules=6"]}
METHODS = {
    "predsim": ["local=predsim"],
    "infopro": ["local=infopro"],
    "contrastive": ["local=infopro", "local.loss=contrastive"],
    "auglocal": ["local=auglocal"],
    "slm": ["local=fba"],
    "fba": ["fba=on"],
    "fba last two": ["fba=on", "fba.features=2", "fba.fusion=add"],
}


@pytest.mark.parametrize("model", EVERY_UNIT)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_same_in_a_pipeline(run: Runner, model: str, method: str) -> None:
    """With every unit a module; the image and the bank pass through stages without a reader."""
    case = [*METHODS[method], *EVERY_UNIT[model], FEW_STEPS, *DATA]
    expected = run("schedule=ll", "gpus=1", *case)
    pipelined = run("schedule=ppll", "gpus=3", *case)
    assert_same(pipelined.tensors(), expected.tensors())
    for mine, other in zip(
        pipelined.summary["per_module"], expected.summary["per_module"], strict=True
    ):
        assert mine == other


@pytest.mark.parametrize("model", EVERY_UNIT)
def test_the_ablation_without_fusion_is_the_local_module_alone(run: Runner, model: str) -> None:
    case = ["gpus=2", *EVERY_UNIT[model], FEW_STEPS, *DATA]
    alone = run("local=fba", *case)
    assert_same(run("fba=on", "fba.fusion=none", *case).tensors(), alone.tensors())
    assert alone.summary["edges"][0]["names"] == ["label", "x"]


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("predsim", [["label", "x"]] * 2),
        # By default the last of eight modules' auxiliary networks has no decoder.
        ("infopro", [["image", "label", "x"], ["label", "x"]]),
        ("fba", [[*(f"bank.{n}" for n in range(m)), "label", "x"] for m in (3, 6)]),
        ("fba last two", [[f"bank.{m - 2}", f"bank.{m - 1}", "label", "x"] for m in (3, 6)]),
    ],
)
def test_what_a_method_asks_for_travels_and_nothing_else(
    run: Runner, method: str, names: list[list[str]]
) -> None:
    """Stages of 3, 3 and 2 modules. What travels has a size, and that is what is reported."""
    case = [*METHODS[method], *EVERY_UNIT["resnet"], "max_steps=5", "eval_every=9", *DATA]
    summary = run("gpus=3", *case, "data.drop_last=true").summary
    edges = summary["edges"]
    assert [edge["names"] for edge in edges] == names
    channels = {0: 16, 1: 16, 2: 16, 3: 32, 4: 32, 5: 64}  # of what each module makes
    side = {2: 8, 5: 2}
    for edge, last in zip(edges, (2, 5), strict=True):
        values = {"image": 3 * 8 * 8, "x": channels[last] * side[last] ** 2, "label": 2}
        size = sum(
            values[name] if name in values else channels[int(name.removeprefix("bank."))]
            for name in edge["names"]
        )
        samples = 5 * 8 + 7  # five batches, and the test set once
        assert edge["bytes_sent"] == 4 * size * samples


@pytest.mark.parametrize("gpus", [2, 3])
def test_modules_that_follow_the_stages_are_the_same_for_ll(run: Runner, gpus: int) -> None:
    overrides = [f"gpus={gpus}", STEPS, *DATA, *VIT, "partition=params"]
    sequential = run("schedule=ll", *overrides)
    assert sequential.summary["modules"] == gpus
    assert len(sequential.summary["stages"]) == 1
    assert_same(run("schedule=ppll", *overrides).tensors(), sequential.tensors())


BACKWARD_CASES = {
    "vit": [*VIT, "optim.schedule=cosine", "optim.clip_norm=0.5"],
    "resnet": [*RESNET, *SGD, "optim.clip_norm=0.5", "optim.schedule=step", "optim.milestones=[1]"],
    "unclipped": [*RESNET, *SGD, "optim.warmup_epochs=1", "data.drop_last=true"],
}


@pytest.mark.parametrize("name", BACKWARD_CASES)
def test_naive_pipeline_is_back_propagation(run: Runner, name: str) -> None:
    case = [FEW_STEPS, *DATA, *BACKWARD_CASES[name]]
    expected = run("schedule=bp", *case).tensors()
    for gpus in (1, 3):
        assert_same(run("schedule=pp", f"gpus={gpus}", *case).tensors(), expected)


@pytest.mark.parametrize(("name", "microbatches"), [("vit", 3), ("resnet", 8)])
def test_pipelines_are_accumulated_back_propagation(
    run: Runner, name: str, microbatches: int
) -> None:
    """8 does not divide by 3, and the last batch has 5 samples: fewer than 8 micro-batches.

    `test_exactness_inside.py` has more schedules, stages and models, without processes.
    """
    case = [f"schedule.microbatches={microbatches}", FEW_STEPS, *DATA, *BACKWARD_CASES[name]]
    expected = run("schedule=bp", *case).tensors()
    for schedule, gpus in (("gpipe", 2), ("1f1b", 3), ("interleaved", 3), ("zb_h1", 4)):
        assert_same(run(f"schedule={schedule}", f"gpus={gpus}", *case).tensors(), expected)


@pytest.mark.parametrize("gpus", [2, 3, 5])
def test_gradients_of_skips_travel_back(run: Runner, gpus: int) -> None:
    """A skip passes through stages that read it as well; one backward call sums both ways."""
    case = [
        *own_model("Skipping"),
        FEW_STEPS,
        *DATA,
        "schedule.microbatches=2",
        "optim.clip_norm=0.1",
    ]
    expected = run("schedule=bp", *case)
    for schedule in ("gpipe", "1f1b"):
        pipelined = run(f"schedule={schedule}", f"gpus={gpus}", *case)
        assert pipelined.summary["edges"][0]["names"] == ["label", "skip", "x"]
        assert_same(pipelined.tensors(), expected.tensors())


def test_detached_skips_travel_forward(run: Runner) -> None:
    case = [*own_model("Skipping"), STEPS, *DATA, "local.modules=5"]
    expected = run("schedule=ll", *case).tensors()
    for gpus in (3, 5):
        assert_same(run("schedule=ppll", f"gpus={gpus}", *case).tensors(), expected)


@pytest.mark.parametrize("schedule", ["ppll", "gpipe", "1f1b"])
def test_transports_carry_the_same_bits(run: Runner, schedule: str) -> None:
    """In place or mapped anew, with strides and a short last batch; gradients too."""
    case = [f"schedule={schedule}", "gpus=3", FEW_STEPS, *DATA, *own_model("Skipping")]
    ring, queue = (run(f"transport={name}", *case) for name in ("ring", "queue"))
    assert_same(queue.tensors(), ring.tensors())
    assert queue.summary["edges"] == ring.summary["edges"]


def test_micro_batches_make_a_difference(run: Runner) -> None:
    """Or the equalities above would say little: BatchNorm sees micro-batches."""
    whole = run("schedule=bp", FEW_STEPS, *DATA, *RESNET, *SGD).tensors()
    parts = run("schedule=bp", "schedule.microbatches=2", FEW_STEPS, *DATA, *RESNET, *SGD).tensors()
    name = "model.stem.bn1.running_mean"
    assert not (whole[name] == parts[name]).all()


@pytest.mark.parametrize(
    ("schedule", "per_batch"),
    [("bp", 1), ("ll", 1), ("pp", 1), ("gpipe", 2), ("1f1b", 2), ("zb_h1", 2), ("ppll", 1)],
)
def test_batch_norm_counts_training_batches_only(
    run: Runner, schedule: str, per_batch: int
) -> None:
    """Torch's pipelining once counted a shape probe as training; nothing of ours may."""
    microbatches = [f"schedule.microbatches={per_batch}"]
    case = ["gpus=2", "local=dgl", "max_steps=5", "data.drop_last=true", *DATA, *RESNET, *SGD]
    tensors = run(f"schedule={schedule}", *microbatches, *case).tensors()
    counters = {n: int(t) for n, t in tensors.items() if n.endswith("num_batches_tracked")}
    assert len(counters) > 10
    assert set(counters.values()) == {5 * per_batch}
