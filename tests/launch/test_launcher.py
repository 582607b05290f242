"""Failures of workers, and how the parent reports them."""

import json
import multiprocessing
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.data.batches import Batches, Split
from ppll_cli.data.synthetic import Synthetic
from ppll_cli.errors import RunFailedError, WorkerFailedError
from ppll_cli.local.greedy import Greedy
from ppll_cli.local.method import Criterion, Site
from tests.conftest import Runner, assert_same, own_model

DATA = ["data=synthetic", "data.size=4", "data.train_samples=64", "data.test_samples=8"]


RAISING = [("second", "ll"), ("third", "gpipe")]
"""With one stage and with several. All other pairs are slow tests."""


def faulty(unit: str, act: str) -> list[str]:
    return [*own_model("Faulty", unit=unit, act=act), *DATA, "batch_size=8"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("unit", "stage", "schedule"),
    [
        pytest.param(
            *(unit, stage, schedule), marks=[pytest.mark.slow] * ((unit, schedule) not in RAISING)
        )
        for schedule in ("ppll", "gpipe", "ll")
        for stage, unit in enumerate(("first", "second", "third"))
    ],
)
def test_a_worker_that_raises_ends_the_run(
    run: Runner, tmp_path: Path, schedule: str, unit: str, stage: int
) -> None:
    """The other workers would wait for ever for the failed one, so the parent must end them."""
    with pytest.raises(WorkerFailedError, match="the third pass is too much") as failure:
        run(f"schedule={schedule}", "gpus=3", *faulty(unit, "raise"))
    report = failure.value.report
    assert report["stage"] == (0 if schedule == "ll" else stage)
    assert "Forward" in report["phase"]
    assert "step=" in report["batch"]
    assert report["shapes"]["label"] == [8 if schedule != "gpipe" else 2]
    assert "ArithmeticError" in report["traceback"]
    assert not multiprocessing.active_children()
    summary = json.loads((tmp_path / "run-0" / "summary.json").read_text())
    assert (summary["status"], summary["test"]) == ("failed", None)
    assert summary["error"] == str(failure.value)


class FailsToStart(Synthetic):
    """A data set whose files are gone when a worker loads them."""

    def load(self) -> dict[str, Split]:
        """Load the data in the parent. In a worker, raise an error."""
        if multiprocessing.parent_process() is not None:
            raise ArithmeticError("the files are gone")
        return super().load()


class FailsToLoad(Synthetic):
    """A data set whose third batch raises an error."""

    def batches(
        self, splits: dict[str, Split], batch_size: int, seed: int, device: torch.device
    ) -> Batches:
        """Return batches of which the first two can be made."""
        made = super().batches(splits, batch_size, seed, device)
        train = made.train

        def failing(epoch: int, batch: int) -> dict[str, Tensor]:
            if batch == 2:
                raise ArithmeticError("the third batch is too much")
            return train(epoch, batch)

        made.train = failing  # type: ignore[method-assign]
        return made


class FailsToLearn(Greedy):
    """A local method whose first loss raises an error in a worker."""

    def criterion(self, site: Site) -> Criterion:
        """Return a criterion with the smallest head.

        On the first module, it fails behind the head.
        """
        head = super().criterion(site).head
        # Later modules could fail earlier, because their inputs are sent before.
        if site.module == 0:
            head = nn.Sequential(head, _Fails())
        return Criterion(head, (site.feature,), site.task)


class _Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if multiprocessing.parent_process() is not None:
            raise ArithmeticError("the loss is too much")
        return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "stage", "phase", "error"),
    [
        ("data._target_=tests.launch.test_launcher.FailsToStart", 0, "starting", "files are gone"),
        ("data._target_=tests.launch.test_launcher.FailsToLoad", 0, "NextBatch", "third batch is"),
        ("local._target_=tests.launch.test_launcher.FailsToLearn", 0, "Loss", "the loss"),
    ],
)
def test_an_exception_of_a_users_class_ends_the_run(
    run: Runner, override: str, stage: int, phase: str, error: str
) -> None:
    with pytest.raises(WorkerFailedError, match=error) as failure:
        run("gpus=3", *own_model("Idle"), *DATA, "batch_size=8", override)
    assert failure.value.report["stage"] == stage
    assert failure.value.report["phase"].startswith(phase)
    assert not multiprocessing.active_children()


def test_a_worker_out_of_memory_suggests_settings_that_need_less(run: Runner) -> None:
    with pytest.raises(
        WorkerFailedError, match=r"; out of memory: try a smaller batch_size, "
    ) as failure:
        run("gpus=3", *faulty("second", "exhaust"))
    assert failure.value.report["stage"] == 1
    assert failure.value.report["phase"].startswith("Forward")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("unit", ["first", pytest.param("third", marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_ends_the_run(run: Runner, unit: str) -> None:
    with pytest.raises(WorkerFailedError, match=r"the worker process is gone \(killed by SIGKILL"):
        run("schedule=ppll", "gpus=3", *faulty(unit, "kill"))
    assert not multiprocessing.active_children()


@pytest.mark.timeout(240)
def test_a_worker_that_is_stopped_ends_the_run(run: Runner) -> None:
    with pytest.raises(
        WorkerFailedError, match=r"is stopped: no sign of life for \d+ s"
    ) as failure:
        run("schedule=ppll", "gpus=3", *faulty("second", "stop"))
    report = failure.value.report
    assert report["stage"] == 1
    assert report["phase"].startswith("Forward")
    assert "step=2" in report["batch"]
    assert "ReceiveActivations" in report["others"]["2"] or "TrainBatch" in report["others"]["2"]
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_that_computes_for_ever_ends_the_run(run: Runner) -> None:
    with pytest.raises(
        WorkerFailedError, match=r"no progress for \d+ s; the limit is 4 s"
    ) as failure:
        run("schedule=gpipe", "gpus=3", "progress_limit=4", *faulty("third", "hang"))
    assert failure.value.report["stage"] == 2  # and not a stage that waits for stage 2


def norm_of(message: str) -> float:
    found = re.search(r"the largest gradient norm [\w ]+ is (\S+);", message)
    assert found is not None
    return float(found[1])


# Under ppll a stage sends its outputs before it reads its loss, so the next stage may report first.
@pytest.mark.parametrize(
    ("schedule", "module"),
    [
        ("ppll", "[12]"),
        pytest.param("ll", "1", marks=pytest.mark.slow),
        ("bp", "0"),
        pytest.param("gpipe", "0", marks=pytest.mark.slow),
    ],
)
def test_a_nonfinite_loss_ends_the_run_and_its_step_is_not_saved(
    run: Runner, tmp_path: Path, schedule: str, module: str
) -> None:
    case = [*faulty("second", "blow_up"), "local.modules=3", "checkpoint.every=1"]
    with pytest.raises(WorkerFailedError, match=f"loss of module {module} of step 2 is") as failure:
        run(f"schedule={schedule}", "schedule.microbatches=1", "gpus=3", *case)
    assert norm_of(str(failure.value)) == float("inf")
    saved = {path.name for path in (tmp_path / "run-0" / "checkpoints").glob("step-*")}
    if schedule == "ppll":  # stages behind the one that fails may not have saved their parts yet
        assert saved <= {"step-1", "step-2"}
    else:
        assert saved == {"step-1", "step-2"}


@pytest.mark.parametrize("clip", [pytest.param("null", marks=pytest.mark.slow), "0.5"])
def test_a_skipped_step_is_skipped_on_all_stages(
    run: Runner, caplog: pytest.LogCaptureFixture, clip: str
) -> None:
    case = [*faulty("second", "blow_up"), "optim.nonfinite=skip", f"optim.clip_norm={clip}"]
    case += ["epochs=1", "optim.warmup_epochs=0"]
    whole = run("schedule=bp", *case)
    assert all(tensor.isfinite().all() for tensor in whole.tensors().values())
    assert "stage 0: step 2 of module 0 is skipped" in caplog.text
    piped = run("schedule=pp", "gpus=3", *case)
    assert_same(piped.tensors(), whole.tensors())


def test_only_the_module_with_nonfinite_gradients_skips_a_step(run: Runner) -> None:
    case = [*faulty("third", "blow_up"), "optim.nonfinite=skip", "local.modules=3", "epochs=1"]
    one, piped = run("schedule=ll", *case), run("schedule=ppll", "gpus=3", *case)
    assert_same(piped.tensors(), one.tensors())
    steps = {n: float(t) for n, t in one.tensors().items() if n.endswith("weight.step")}
    assert sorted(set(steps.values())) == [7, 8]


def test_metrics_that_cannot_be_written_end_the_run(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "run-0").mkdir()
    (tmp_path / "run-0" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFailedError, match="No space left on device"):
        run(*DATA, "batch_size=8", "epochs=1")
    assert not multiprocessing.active_children()


def test_a_checkpoint_that_cannot_be_written_ends_the_run(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "run-0").mkdir()
    (tmp_path / "run-0" / "checkpoints").write_text("in the way")
    with pytest.raises(WorkerFailedError, match="Error: ") as failure:
        run(*DATA, "batch_size=8", "epochs=1")
    assert "Checkpoint" in failure.value.report["phase"]
