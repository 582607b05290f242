"""With other data and targets, all schedules still train the same. The runs are inside the test."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import assert_same
from tests.data.picture_files import picture
from tests.worker.inside import run_inside

MODEL = ["model.dim=16", "model.depth=4", "model.heads=2", "epochs=2", "batch_size=8"]
SYNTHETIC = ["data=synthetic", "data.size=8", "data.train_samples=29", "data.test_samples=9"]
CHANGED = ["data.augment=randaugment", "data.pad=2", "optim.label_smoothing=0.2"]

PAIRS = [
    (["schedule=ll", "local.modules=3"], ["schedule=ppll", "gpus=3"]),
    pytest.param(
        *(["schedule=bp", "schedule.microbatches=3"], ["schedule=1f1b", "gpus=2"]),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_schedules_train_augmented_and_smoothed_data_the_same(
    tmp_path: Path, one: Sequence[str], other: Sequence[str]
) -> None:
    micro = [key for key in one if key.startswith("schedule.microbatches")]
    usual = [*MODEL, *SYNTHETIC]
    found = [
        run_inside(tmp_path / str(number), *usual, *CHANGED, *schedule)
        for number, schedule in enumerate((one, [*other, *micro]))
    ]
    assert_same(found[0].tensors, found[1].tensors)
    assert found[0].test == found[1].test
    plain = run_inside(tmp_path / "plain", *usual, *CHANGED[1:2], *one)
    assert any(not tensor.equal(found[0].tensors[name]) for name, tensor in plain.tensors.items())


def test_pictures_from_loaders_and_from_the_cache_train_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "root"
    for number in range(30):
        folder = root / ("train" if number < 21 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number % 5, 20 + number, 30).save(folder / f"{number}.jpg")
    data = ["data=imagefolder", f"data.root={root}", "data.size=8", "data.pad=2", *CHANGED[:1]]
    data += ["data.mixup=0.3", "data.cutmix=1.0"]
    found = [
        run_inside(tmp_path / str(loaders), *MODEL, *data, f"data.loaders={loaders}")
        for loaders in (0, 1)
    ]
    assert_same(found[0].tensors, found[1].tensors)
    assert found[0].test == found[1].test
