"""A checkpoint becomes the best one only if its metric is better than that of the best before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ppll_cli.job import checkpoint
from ppll_cli.job.job import Seat
from ppll_cli.launch.saving import Saving
from ppll_cli.observe.metrics import Metrics
from ppll_cli.tasks.classification import Classification

COUNTED: dict[str, Any] = {
    "batches": 0,
    "samples": 0,
    "wall_s": 0.0,
    "spent_s": {},
    "instruction_s": {},
    "bytes_sent": {},
    "peak_memory_bytes": None,
    "peak_reserved_bytes": None,
}


@pytest.mark.parametrize(
    ("accuracies", "lower_is_better", "best"),
    [
        ([0.25, 0.5, 0.25], False, [1, 2, 2]),
        ([0.25, 0.5, 0.125], True, [1, 1, 3]),
        ([0.5, 0.5, 0.75], False, [1, 1, 3]),  # if two metrics are equal, the first stays
        ([0.75, 0.5, 0.5], True, [1, 2, 2]),
        ([None, 0.0, None], False, [None, 2, 2]),  # a metric is None if it is not finite
    ],
)
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_checkpoint_becomes_the_best_only_if_its_metric_is_better(
    tmp_path: Path,
    split: str,
    accuracies: list[float | None],
    lower_is_better: bool,
    best: list[int | None],
) -> None:
    """If there is a validation set, it decides. Otherwise the test set decides."""
    job = SimpleNamespace(
        course=SimpleNamespace(samples={"train": 8, split: 8, "test": 8}),
        run_dir=str(tmp_path),
        seats=[Seat(0, 0)],
        settings=SimpleNamespace(checkpoint=SimpleNamespace(best=True, keep=1)),
        stages=1,
        task=SimpleNamespace(lower_is_better=lower_is_better),
    )
    parts = SimpleNamespace(listed=lambda *_: [], counted=lambda *_: [])
    found = []
    with Metrics(tmp_path / "metrics.jsonl", Classification(2), 1) as metrics:
        prepared = cast(Any, SimpleNamespace(job=job, cuts=()))
        saving = Saving(prepared, metrics, cast(Any, parts))
        for step, accuracy in enumerate(accuracies, 1):
            measured = {"step": step, "epoch": 1, "stage": 0, "module": 0, "seconds": 1.0}
            measured |= {"loss": 1.0, "samples": 1, "at_s": 0.0}
            score = float("nan") if accuracy is None else accuracy
            if split == "val":  # the test set would select the last checkpoint
                tested = {"accuracy": -step if lower_is_better else step}
                metrics.add({**measured, "split": "test", "scores": tested})
            metrics.add({**measured, "split": split, "scores": {"accuracy": score}})
            file = checkpoint.save_stage(str(tmp_path), step, 0, {"model.x": torch.ones(1)})
            seat = {"step": step, "stage": 0, "replica": 0}
            saving.take({"kind": "counted", **seat, "worker": COUNTED}, 1.0)
            saving.take({"kind": "saved", **seat, "epoch": 1, "file": file}, 1.0)
            found.append(checkpoint.best_step(tmp_path))
    assert found == best


def test_a_run_directory_that_was_moved_ends_the_run(tmp_path: Path) -> None:
    """The run once went on in a new folder, and its results were in two places."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    job = SimpleNamespace(run_dir=str(run_dir), seats=[Seat(0, 0)], stages=1)
    prepared = cast(Any, SimpleNamespace(job=job, cuts=()))
    with Metrics(run_dir / "metrics.jsonl", Classification(2), 1) as metrics:
        saving = Saving(prepared, metrics, cast(Any, None))
        run_dir.rename(tmp_path / "moved")
        file = checkpoint.save_stage(str(run_dir), 1, 0, {"model.x": torch.ones(1)})
        seat = {"step": 1, "stage": 0, "replica": 0}
        saving.take({"kind": "counted", **seat, "worker": COUNTED}, 1.0)
        with pytest.raises(FileNotFoundError, match=r"run/metrics\.jsonl"):
            saving.take({"kind": "saved", **seat, "epoch": 1, "file": file}, 1.0)
