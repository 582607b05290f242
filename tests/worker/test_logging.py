"""The reports of training and their times: every `log_every` steps, also if the run was resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ppll_cli.job.learning_rate import learning_rate
from tests.conftest import assert_same
from tests.worker.cases import DATA as FEWER
from tests.worker.cases import RESNET, SGD, VIT
from tests.worker.inside import Outcome, run_inside

FEW_STEPS = "max_steps=9"
DATA = [*FEWER, "data.train_samples=53"]  # 53 = 6 * 8 + 5
CASE = [*DATA, *VIT, "local.modules=3", "optim.schedule=cosine"]
SUMMED = ("loss", "samples")


def inside(folder: Path, *overrides: str, **changes: Any) -> Outcome:
    return run_inside(folder, *CASE, FEW_STEPS, *overrides, **changes)


def steps(outcome: Outcome) -> list[int]:
    return sorted({step for step, _ in outcome.train})


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        pytest.param(1, [*range(1, 10)], marks=pytest.mark.slow),
        (3, [3, 6, 7, 9]),
        pytest.param(4, [4, 7, 8, 9], marks=pytest.mark.slow),
        (99, [7, 9]),
    ],
)
def test_log_every_counts_the_steps_of_the_run(
    tmp_path: Path, every: int, expected: list[int]
) -> None:
    """An epoch has 7 steps, and ends with a report. The run is stopped after 9 steps."""
    found = inside(tmp_path, "schedule=ll", f"log_every={every}")
    assert steps(found) == expected
    complete = {step for (step, _), report in found.train.items() if report["complete"]}
    assert complete == {step for step in expected if step % every == 0 or step % 7 == 0}
    for (step, _), report in found.train.items():
        assert report["epoch"] == (1 if step <= 7 else 2)


def test_a_report_covers_the_steps_since_the_last_report(tmp_path: Path) -> None:
    """Checkpoints and evaluations in between do not matter."""
    single = inside(tmp_path / "1", "schedule=ll", "log_every=1").train
    several = inside(tmp_path / "3", "gpus=2", "log_every=3", "checkpoint.every=2", "eval_every=1")
    first = 1
    for last in (3, 6, 7, 9):
        for module in range(3):
            report = several.train[last, module]
            parts = [single[step, module] for step in range(first, last + 1)]
            for key in SUMMED:
                assert report[key] == sum(part[key] for part in parts)
            right = sum(part["scores"]["accuracy"] * part["samples"] for part in parts)
            assert report["scores"]["accuracy"] == pytest.approx(right / report["samples"])
        first = last + 1


def test_the_learning_rate_is_that_of_the_last_step(tmp_path: Path) -> None:
    found = inside(tmp_path, "gpus=3", "log_every=2")
    course, optim = found.job.course, found.job.settings.optim
    for (step, _), report in found.train.items():
        rate = learning_rate(optim, step - 1, course.steps_per_epoch, course.epochs)
        assert report["last_step"] == {"lr": rate}


@pytest.mark.parametrize(
    ("first", "then", "stop"),
    [
        pytest.param(["schedule=ll"], ["schedule=ppll", "gpus=3"], 5, marks=pytest.mark.slow),
        pytest.param(["gpus=3"], ["gpus=2"], 5, marks=pytest.mark.slow),
        (["gpus=3"], ["gpus=2"], 6),
        pytest.param(
            *(["schedule=gpipe", "gpus=2"], ["schedule=gpipe", "gpus=3"], 5),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(["gpus=4", "replicas=2"], ["gpus=4", "replicas=2"], 5), marks=pytest.mark.slow
        ),
    ],
    ids=["ll to ppll", "other stages", "at a report", "gpipe", "replicas"],
)
def test_a_resumed_run_sends_the_same_reports_as_an_unbroken_one(
    tmp_path: Path, first: list[str], then: list[str], stop: int
) -> None:
    """The run stops between two reports, or right at a report. No report is missing or repeated."""
    every = "log_every=3"
    expected = inside(tmp_path / "unbroken", *first, every)
    before = inside(tmp_path / "run", *first, every, f"max_steps={stop}")
    folder = tmp_path / "run" / "checkpoints" / f".step-{stop}.unfinished"
    after = inside(tmp_path / "then", *then, every, start=stop, checkpoint=folder)
    complete = {key: report for key, report in before.train.items() if report["complete"]}
    assert not complete.keys() & after.train.keys()
    assert {**complete, **after.train} == expected.train
    incomplete = before.train.keys() - complete.keys()
    assert {step for step, _ in incomplete} == ({stop} if stop == 5 else set())
    assert_same(after.tensors, expected.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("model", [VIT, [*RESNET, *SGD]], ids=["vit", "resnet"])
def test_schedules_with_equal_gradients_report_equal_norms(
    tmp_path: Path, model: list[str]
) -> None:
    """Under local learning each module has a norm. Otherwise there is one norm over all stages."""
    case = [*DATA, *model, FEW_STEPS, "log_every=2", "log_grad_norm=true"]
    families = [
        [["schedule=ll", "local.modules=3"], ["schedule=ppll", "local.modules=3", "gpus=3"]],
        [["schedule=bp"], ["schedule=pp", "gpus=3"]],
    ]
    for number, (expected, other) in enumerate(families):
        first = run_inside(tmp_path / f"{number}", *expected, *case)
        assert run_inside(tmp_path / f"{number}-other", *other, *case).train == first.train
        norms = {key: report["last_step"]["grad_norm"] for key, report in first.train.items()}
        assert {step for step, _ in norms} == {2, 4, 6, 7, 8, 9}
        assert len({*norms.values()}) == len(norms) == 6 * (3 if number == 0 else 1)
        assert all(norm > 0 for norm in norms.values())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["ppll", "pp", "gpipe"])
def test_clipping_also_computes_the_gradient_norm(tmp_path: Path, schedule: str) -> None:
    """The norm is that before clipping. A limit above all norms does not change training."""
    case = [f"schedule={schedule}", "gpus=2", "log_every=2"]
    asked = inside(tmp_path / "asked", *case, "log_grad_norm=true")
    clipped = inside(tmp_path / "clipped", *case, "optim.clip_norm=1e6")
    neither = inside(tmp_path / "neither", *case)
    assert clipped.train == asked.train
    assert_same(asked.tensors, neither.tensors)
    for report in neither.train.values():
        assert report["last_step"].keys() == {"lr"}
    low = inside(tmp_path / "low", *case, "optim.clip_norm=1e-3", "log_every=1")
    assert low.train[1, 0]["last_step"]["grad_norm"] > 1e-2


def test_the_reported_norm_matches_the_length_of_an_sgd_step(tmp_path: Path) -> None:
    """Plain SGD moves the weights by the learning rate times the gradient."""
    rate = 0.25
    case = [*DATA, *VIT, "schedule=pp", "gpus=3", "log_every=1", "log_grad_norm=true"]
    case += ["optim=sgd", f"optim.lr={rate}", "optim.momentum=0", "optim.nesterov=false"]
    case += ["optim.weight_decay=0", "optim.schedule=constant"]
    one = run_inside(tmp_path / "1", *case, "max_steps=1")
    two = run_inside(tmp_path / "2", *case, "max_steps=2")
    moved = [(two.tensors[n] - one.tensors[n]).double() for n in one.tensors if "model." in n]
    length = float(torch.cat([each.flatten() for each in moved]).norm())
    assert two.train[2, 0]["last_step"]["grad_norm"] == pytest.approx(length / rate, rel=1e-4)
