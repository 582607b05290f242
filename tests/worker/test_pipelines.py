"""Back-propagation with all schedules that split batches, and many shapes: the bits are equal.

The runs are inside the test, with threads as workers, so that there can be many.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from ppll_cli.job.checkpoint import unfinished_folder
from ppll_cli.pipeline.instructions import BackwardInput, BackwardWeight, Compute, Step
from ppll_cli.pipeline.schedule import Place, Schedule, forward
from tests.conftest import assert_same, own_model
from tests.data.picture_files import write_photos
from tests.data.scene_files import write_fashion
from tests.worker.inside import Outcome, run_inside

DATA = ["data=synthetic", "data.size=8", "data.classes=5", "data.train_samples=21"]
DATA += ["data.test_samples=13", "batch_size=8", "epochs=2", "eval_every=1"]  # 21 = 2 * 8 + 5
VIT = ["model.dim=16", "model.depth=6", "model.heads=2", "model.dropout=0.1"]
VIT += ["model.drop_path=0.3"]
RESNET = ["model=resnet32", "model.depth=14", "optim=sgd", "optim.lr=0.05", "model.drop_path=0.3"]
CASES = {
    "vit": [*VIT, "optim.clip_norm=0.1"],
    "resnet": [*RESNET, "optim.clip_norm=0.5"],
    "skips": [*own_model("Skipping"), "optim.nonfinite=skip"],
    "views": own_model("Views"),
    "detached": [*own_model("Detached"), "optim.weight_decay=0.5"],
    "indices": own_model("index_models.Indices"),
    "strided": own_model("Strided"),
    "twins": own_model("Twins"),
    "bf16": [*VIT, "model.depth=2", "precision=bf16"],
}
"""Models and optimizers. The optimizer of a ViT is AdamW by default."""

UNITS = {
    "vit": 8,
    "resnet": 8,
    "skips": 5,
    "views": 5,
    "detached": 5,
    "indices": 5,
    "strided": 5,
    "twins": 5,
    "bf16": 4,
}
"""Number of units of each model. There can be no more chunks than units."""

SPLITS = {"vit": [3, 5], "resnet": [3, 5]}
"""Numbers of micro-batches; for other models 5. The last batch has 5 samples.

The rounds of an interleaved schedule are seldom full with 3 or 5 micro-batches.
"""

SHAPES = {
    ("gpipe", 3, 1): ["detached"],
    ("1f1b", 4, 1): ["skips"],
    ("zb_h1", 2, 1): ["detached"],
    ("zb_h1", 3, 1): ["bf16"],
    ("zb_h1", 5, 1): [],
    ("interleaved", 1, 3): ["views", "strided"],
    ("interleaved", 2, 2): ["skips", "indices", "twins"],
    ("interleaved", 3, 1): [],
    ("interleaved", 2, 4): ["resnet"],
    ("interleaved", 4, 2): [],
}
"""Schedule, number of stages, and chunks per stage. The value lists models that are always tested.

Each small model is tested at least once, and so is each schedule. Other pairs are slow tests.
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Outcome]:
    """Return a function that runs accumulated back-propagation, once per case."""

    @cache
    def run(name: str, microbatches: int) -> Outcome:
        shape = ["schedule=bp", f"schedule.microbatches={microbatches}"]
        return run_inside(tmp_path_factory.mktemp("expected"), *shape, *DATA, *CASES[name])

    return run


@pytest.mark.parametrize(
    ("name", "schedule", "gpus", "chunks", "microbatches"),
    [
        pytest.param(
            *(name, *shape, microbatches),
            marks=[pytest.mark.slow] * (microbatches == 3 or name not in always),
        )
        for name in CASES
        for shape, always in SHAPES.items()
        for microbatches in SPLITS.get(name, [5])
        if shape[1] * shape[2] <= UNITS[name]
    ],
)
def test_pipelines_are_accumulated_back_propagation(
    expected: Callable[[str, int], Outcome],
    tmp_path: Path,
    name: str,
    schedule: str,
    gpus: int,
    chunks: int,
    microbatches: int,
) -> None:
    shape = [f"schedule={schedule}", f"gpus={gpus}", f"schedule.microbatches={microbatches}"]
    shape += [f"schedule.chunks={chunks}"] if schedule == "interleaved" else []
    found = run_inside(tmp_path, *shape, *DATA, *CASES[name])
    assert len(found.job.layout.chunks) == gpus * chunks
    assert_same(found.tensors, expected(name, microbatches).tensors)
    assert found.test == expected(name, microbatches).test
    assert len(found.test) == 2


TWICE = ["replicas=2", "schedule.microbatches=2"]
REPLICAS = {
    "vit": CASES["vit"],
    "skips": CASES["skips"],
    "synced": [*RESNET, "sync_batchnorm=true", "data.drop_last=true"],
}

REPLICATED = ["zb_h1 6", "interleaved 4"]
"""Schedules, and the number of devices for two replicas of all stages."""

REPLICATED_ALWAYS = ("skips", "zb_h1 6")
"""The pair that is always tested. The others are slow tests.

`launch/test_replicas.py` and `test_recompute.py` train with a synced BatchNorm.
"""


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Return a function that trains two replicas of the whole model, once per case."""

    @cache
    def run(name: str) -> Outcome:
        shape = ["schedule=bp", "gpus=2", *TWICE]
        return run_inside(tmp_path_factory.mktemp("averaged"), *shape, *DATA, *REPLICAS[name])

    return run


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=[pytest.mark.slow] * ((name, shape) != REPLICATED_ALWAYS))
        for name in REPLICAS
        for shape in REPLICATED
    ],
)
def test_pipelines_with_two_replicas_end_with_the_same_bits(
    averaged: Callable[[str], Outcome], tmp_path: Path, name: str, shape: str
) -> None:
    """A stage averages gradients while it computes. A backward may be split into halves."""
    schedule, gpus = shape.split()
    found = run_inside(
        tmp_path, f"schedule={schedule}", f"gpus={gpus}", *TWICE, *DATA, *REPLICAS[name]
    )
    assert (found.job.replicas, found.job.stages) == (2, int(gpus) // 2)
    assert_same(found.tensors, averaged(name).tensors)
    assert found.test == averaged(name).test


RESUMED = [
    (("zb_h1", 3, 1), ("interleaved", 2, 2)),
    (("interleaved", 2, 2), ("zb_h1", 2, 1)),
    (("interleaved", 2, 2), ("interleaved", 4, 2)),
]
"""Schedule, number of stages, and chunks per stage, before and after a checkpoint."""

RESUMED_ALWAYS = ("resnet", RESUMED[1])
"""The pair that is always tested. The others are slow tests."""


def test_replicas_that_stop_inside_an_epoch_are_evaluated(tmp_path: Path) -> None:
    """Each replica evaluates its own batches, which visit each stage twice.

    No worker waits for ever.
    """
    shape = ["schedule=interleaved", "gpus=4", *TWICE, "max_steps=2"]
    found = run_inside(tmp_path, *shape, *DATA, *CASES["skips"])
    assert [step for step, _ in found.test] == [2]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        pytest.param(
            *(name, *shapes),
            id=f"{name}-{shapes}",
            marks=[pytest.mark.slow] * ((name, shapes) != RESUMED_ALWAYS),
        )
        for name in ("vit", "resnet")
        for shapes in RESUMED
    ],
)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
    expected: Callable[[str, int], Outcome],
    tmp_path: Path,
    name: str,
    before: tuple[str, int, int],
    after: tuple[str, int, int],
) -> None:
    """The run stops in the middle of an epoch, and resumes with other stages and chunks."""

    def shaped(schedule: str, gpus: int, chunks: int) -> list[str]:
        shape = [f"schedule={schedule}", f"gpus={gpus}", "schedule.microbatches=3"]
        return shape + [f"schedule.chunks={chunks}"] * (schedule == "interleaved")

    case = [*DATA, *CASES[name]]
    stopped = run_inside(
        tmp_path / "before", *shaped(*before), *case, "checkpoint.every=2", "max_steps=2"
    )
    folder = unfinished_folder(tmp_path / "before", 2)
    assert len(list(folder.iterdir())) == stopped.job.stages
    found = run_inside(tmp_path / "after", *shaped(*after), *case, start=2, checkpoint=folder)
    assert_same(found.tensors, expected(name, 3).tensors)
    assert found.test == expected(name, 3).test


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        ["schedule=zb_h1", "gpus=3"],
        ["schedule=interleaved", "gpus=2", "schedule.chunks=2"],
        ["schedule=interleaved", "gpus=2", "schedule.chunks=3"],
        ["schedule=1f1b", "gpus=4"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("task", ["detection", "super-resolution"])
def test_pipelines_train_detection_and_super_resolution_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, shape: list[str]
) -> None:
    """Skips cross many stages: the maps of a pyramid, and the long skip.

    Targets have several tensors.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if task == "detection":
        case = own_model("own_detector.NarrowRetinaNet", width=8, drop_path=0.3)
        case += ["data=fashion_scenes", "data.pictures=10"]
        case += [f"data.root={write_fashion(tmp_path / 'root')}", "data.test_pictures=3"]
        case += ["data.side=64", "data.short_side=64", "data.long_side=64"]
    else:
        photos = write_photos(tmp_path / "photos", width=72, height=64)
        case = ["model=edsr", "model.depth=4", "model.width=4", "data=photos", "data.patch=8"]
        case += [f"data.folders=[{photos}]", f"data.cache={tmp_path / 'cache'}", "data.tile=35"]
        case += ["data.patches_per_epoch=10", "data.overlap=15", "data.eval_limit=2"]
    case += ["batch_size=4", "epochs=1", "max_steps=3", "schedule.microbatches=2"]
    case += ["optim.clip_norm=0.1"]
    expected = run_inside(tmp_path / "bp", "schedule=bp", *case)
    found = run_inside(tmp_path / "found", *shape, *case)
    assert_same(found.tensors, expected.tensors)
    assert found.test == expected.test


def test_a_skip_is_handed_on_inside_a_stage(tmp_path: Path) -> None:
    """Chunks 0 and 1 are on one stage, 2 and 3 on another. The last reader releases the slot."""
    case = [*own_model("Skipping"), *DATA, "schedule.microbatches=3"]
    expected = run_inside(tmp_path / "bp", "schedule=bp", *case)
    schedule = "schedule._target_=tests.worker.test_pipelines.InPairs"
    found = run_inside(tmp_path / "found", "schedule=1f1b", schedule, "gpus=2", *case)
    assert [chunk.stage for chunk in found.job.layout.chunks] == [0, 0, 1, 1]
    assert_same(found.tensors, expected.tensors)
    assert found.test == expected.test


def test_a_view_of_a_slot_outlives_the_slot(tmp_path: Path) -> None:
    """Chunk 1 only reshapes its input. Its slot is released before chunk 2 reads the view again.

    The gradient of chunk 2's weights is computed from the view, after all work of chunk 1.
    """
    case = [*own_model("Views"), *DATA, "schedule.microbatches=3"]
    expected = run_inside(tmp_path / "bp", "schedule=bp", *case)
    schedule = "schedule._target_=tests.worker.test_pipelines.PairInTheMiddle"
    cuts = ["gpus=3", "partition=manual", "partition.cuts=[fold,middle,last]"]
    found = run_inside(tmp_path / "found", "schedule=1f1b", schedule, *cuts, *case)
    assert [chunk.stage for chunk in found.job.layout.chunks] == [0, 1, 1, 2]
    assert_same(found.tensors, expected.tensors)
    assert found.test == expected.test


@pytest.mark.parametrize("schedule", ["gpipe", "zb_h1"])
def test_a_weight_keeps_its_gradient_if_the_slot_is_filled_again(
    tmp_path: Path, schedule: str
) -> None:
    """With one sample, the gradient of the class token is a view of the gradient received.

    The first stage has only the unit with the class token. The last batch has one sample.
    """
    shape = ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=4"]
    case = [*DATA, *shape, "schedule.microbatches=4", "data.train_samples=9", "epochs=1"]
    expected = run_inside(tmp_path / "bp", "schedule=bp", *case)
    cuts = ["gpus=2", "partition=manual", "partition.cuts=[blocks.0]"]
    found = run_inside(tmp_path / "found", f"schedule={schedule}", *cuts, *case)
    assert_same(found.tensors, expected.tensors)
    assert found.test == expected.test


class InPairs(Schedule):
    """Two neighbouring chunks on each stage. All forwards come first, and backwards are split."""

    splits = True

    def layout(self, stages: int) -> Sequence[int]:
        """Put chunks 0 and 1 on stage 0, chunks 2 and 3 on stage 1, and so on."""
        return [stage for stage in range(stages) for _ in range(2)]

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield the halves of backwards for the weights at the end."""
        count = range(place.microbatches)
        for m in count:
            for chunk in place.chunks:
                yield from forward(place, chunk, m)
        for m in count:
            for chunk in reversed(place.chunks):
                yield BackwardInput(chunk, m)
        for chunk in place.chunks:
            for m in count:
                yield BackwardWeight(chunk, m)
            yield Step(chunk)


class PairInTheMiddle(InPairs):
    """Like `InPairs`, but only stage 1 has two chunks."""

    def layout(self, stages: int) -> Sequence[int]:
        """Put chunks 1 and 2 on stage 1."""
        return [0, 1, 1, 2]
