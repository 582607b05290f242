"""Evaluating a finished run gives the run's own numbers."""

from pathlib import Path

import pytest
import torch

from ppll_cli import load_run
from ppll_cli.errors import ConfigError
from ppll_cli.launch.evaluation import evaluate
from ppll_cli.pipeline.schedules.gpipe import GPipe
from tests.conftest import own_model
from tests.data.picture_files import write_photos
from tests.data.scene_files import write_fashion
from tests.finished import finished_run
from tests.noisy import Noisy, Projected

DIGITS = ["data=digits", "model.dim=16", "model.depth=2", "model.heads=2", "max_steps=3"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scenes(tmp_path: Path) -> list[str]:
    return [
        "model=retinanet",
        "model.depth=18",
        "model.width=8",
        "data=fashion_scenes",
        f"data.root={write_fashion(tmp_path / 'root')}",
        "data.pictures=8",
        "data.test_pictures=3",
        *(f"data.{key}=64" for key in ("side", "short_side", "long_side")),
        "batch_size=4",
        "max_steps=2",
    ]


def photos(tmp_path: Path) -> list[str]:
    return [
        "model=edsr",
        "model.depth=3",
        "model.width=4",
        "data=photos",
        f"data.folders=[{write_photos(tmp_path / 'photos', width=72, height=64)}]",
        f"data.cache={tmp_path / 'pictures'}",
        "data.patch=8",
        "data.patches_per_epoch=8",
        "data.tile=31",
        "data.overlap=13",
        "data.eval_limit=2",
        "batch_size=4",
        "max_steps=2",
    ]


def test_scores_that_are_nan_are_reported_as_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has no NaN. A model that has diverged can still be evaluated."""
    finished_run(tmp_path / "run", *photos(tmp_path), "schedule=bp")
    run = load_run(tmp_path / "run")
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.fill_(float("nan"))
    found = evaluate(run, "test")
    assert found.result["psnr"] is None
    assert found.details is not None
    assert [each["psnr"] for each in found.details.entries] == [None, None]


TASKS = {"digits": lambda _: DIGITS, "scenes": scenes, "photos": photos}
SCHEDULES = {
    "local learning": ["schedule=ppll", "gpus=2", "local.modules=2"],
    "back-propagation": ["schedule=bp", "schedule.microbatches=3"],
}


@pytest.mark.parametrize(
    ("task", "schedule"),
    [
        ("digits", "local learning"),
        ("photos", "local learning"),
        # `test_detection_has_details_of_each_class` also compares the scores
        pytest.param("scenes", "back-propagation", marks=pytest.mark.slow),
        pytest.param("digits", "back-propagation", marks=pytest.mark.slow),
        pytest.param("scenes", "local learning", marks=pytest.mark.slow),
        pytest.param("photos", "back-propagation", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_repeats_the_runs_own_scores(
    tmp_path: Path, task: str, schedule: str
) -> None:
    before = torch.get_num_threads()
    run = finished_run(tmp_path / "run", *TASKS[task](tmp_path), *SCHEDULES[schedule])
    found = evaluate(load_run(run.folder), "test")
    assert found.result == run.test
    assert list(found.result) == list(run.test)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("options", [["precision=bf16"], ["schedule=gpipe", "gpus=2"]])
def test_an_evaluation_uses_the_runs_precision_and_micro_batches(
    tmp_path: Path, options: list[str]
) -> None:
    run = finished_run(tmp_path / "run", *DIGITS, *options)
    assert evaluate(load_run(run.folder), "test").result == run.test


class InThirds(GPipe):
    """A schedule with a default of its own."""

    def __init__(self, *, microbatches: int = 3) -> None:
        super().__init__(microbatches=microbatches)


def test_an_evaluation_uses_the_micro_batches_of_a_users_schedule(tmp_path: Path) -> None:
    """The evaluation does not import the class. The summary has its default."""
    own = ["schedule=gpipe", f"schedule._target_={__name__}.InThirds", "~schedule.microbatches"]
    run = finished_run(tmp_path / "run", *DIGITS, *own, "gpus=2", "batch_size=50")
    (run.folder / "summary.json").write_text('{"microbatches": 3}')
    assert evaluate(load_run(run.folder), "test").result == run.test


def test_an_evaluation_uses_batch_norms_running_statistics(tmp_path: Path) -> None:
    small = ["model=resnet32", "max_steps=2", "schedule=bp", "data.eval_limit=70"]
    run = finished_run(tmp_path / "run", "data=digits", *small)
    loaded = load_run(run.folder)
    assert not loaded.model.training
    assert evaluate(loaded, "test").result == run.test


def test_an_evaluation_of_averaged_weights_repeats_the_runs_scores(tmp_path: Path) -> None:
    small = ["model=resnet32", "max_steps=2", "schedule=bp", "data.eval_limit=70", "optim.ema=0.9"]
    run = finished_run(tmp_path / "run", "data=digits", *small)
    assert evaluate(load_run(run.folder, ema=True), "test").result == run.test_ema
    assert evaluate(load_run(run.folder), "test").result == run.test != run.test_ema
    plain = finished_run(tmp_path / "plain", *DIGITS)
    with pytest.raises(ConfigError, match="ema=true: the run kept no averages of its weights"):
        load_run(plain.folder, ema=True)


@pytest.mark.parametrize("model", [Noisy, Projected])
def test_an_evaluation_draws_the_random_numbers_of_the_run(
    tmp_path: Path, model: type[Noisy | Projected]
) -> None:
    where = ["schedule=ppll", "gpus=2", "local.modules=2", "max_steps=2"]
    own = own_model(f"noisy.{model.__name__}")
    run = finished_run(tmp_path / "run", "data=digits", *own, *where)
    before = torch.get_rng_state()
    loaded = load_run(run.folder, classes=[model])
    assert evaluate(loaded, "test").result == run.test
    assert torch.equal(torch.get_rng_state(), before)


def test_details_by_class_add_up_to_the_metric(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", *DIGITS, "schedule=bp", "data.val_fraction=0.1")
    loaded = load_run(run.folder)
    found = evaluate(loaded, "val")
    assert found.samples == 144
    details = found.details
    assert details is not None
    assert details.confusion is not None
    assert [entry["class"] for entry in details.entries] == list("0123456789")
    right = sum(row[label] for label, row in enumerate(details.confusion))
    assert sum(map(sum, details.confusion)) == sum(e["samples"] for e in details.entries) == 144
    assert right / 144 == found.result["accuracy"]
    for entry, row in zip(details.entries, details.confusion, strict=True):
        assert entry["accuracy"] == row[int(entry["class"])] / sum(row)
    train = evaluate(loaded, "train")
    assert train.samples == 1437 - 144
    with pytest.raises(ConfigError, match="--split=dev: the data set has no such split"):
        evaluate(loaded, "dev")


def test_detection_has_details_of_each_class(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path / "run", *scenes(tmp_path), "schedule=bp", "schedule.microbatches=3"
    )
    assert evaluate(load_run(run.folder), "test").result == run.test
    found = evaluate(load_run(run.folder), "train")
    assert found.details is not None
    assert [entry["class"] for entry in found.details.entries][:2] == ["t-shirt", "trouser"]
    known = [entry["ap"] for entry in found.details.entries if entry["ap"] is not None]
    assert found.result["ap"] == pytest.approx(sum(known) / len(known))
    there = sum(entry["boxes"] for entry in found.details.entries)
    assert there == load_run(run.folder).data.splits["train"].not_ignored  # type: ignore[attr-defined]


def test_super_resolution_has_details_of_each_picture(tmp_path: Path) -> None:
    """The training pictures have details too, although training loads only patches of them."""
    run = finished_run(tmp_path / "run", *photos(tmp_path), "schedule=bp")
    loaded = load_run(run.folder)
    for split, names in (("test", ["3.png", "4.png"]), ("train", ["0.png", "1.png", "2.png"])):
        found = evaluate(loaded, split)
        assert found.details is not None
        assert [entry["picture"] for entry in found.details.entries] == names
        mean = sum(entry["psnr"] for entry in found.details.entries) / len(names)
        assert mean == pytest.approx(found.result["psnr"])


def test_an_evaluation_accepts_another_batch_size(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", *DIGITS, "schedule=bp")
    loaded = load_run(run.folder)
    other = evaluate(loaded, "test", batch_size=7)
    assert other.result["accuracy"] == run.test["accuracy"]
    assert other.result["loss"] == pytest.approx(run.test["loss"], rel=1e-5)
