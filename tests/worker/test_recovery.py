"""If workers die and start again, the results of the run stay equal, bit for bit."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from ppll_cli.job.job import Job, Seat
from tests.conftest import assert_same
from tests.worker.dying import Journals
from tests.worker.inside import Outcome, execute, job_inside

SMALL = ["data=synthetic", "data.size=8", "data.train_samples=44", "data.test_samples=20"]
SMALL += ["batch_size=8", "epochs=2", "eval_every=1", "threads=1", "device=cpu", "log_every=4"]
VIT = ["model=vit", "model.dim=16", "model.depth=3", "model.heads=2", "model.dropout=0.1"]
RESNET = ["model=resnet32", "model.depth=8", "optim=sgd", "optim.lr=0.05"]

CASES = {
    "vit": [*VIT, "gpus=2", "checkpoint.every=5"],
    "three": [*VIT, "gpus=3", "local.modules=5", "checkpoint.every=7"],
    "resnet": [*RESNET, "gpus=2", "optim.ema=0.9", "data.flip=true", "data.pad=1"],
    "upstream": [*RESNET, "gpus=2", "local=manpp", "local.modules=3"],
    "bank": [*RESNET, "gpus=3", "local=fba", "local.modules=4"],
}


def _job(folder: Path, *overrides: str) -> Job:
    return job_inside(folder, *SMALL, *overrides)


def _assert_equal(found: Outcome, expected: Outcome) -> None:
    assert_same(found.tensors, expected.tensors)
    assert found.test == expected.test
    assert found.test_ema == expected.test_ema
    assert found.train == expected.train
    assert found.sent == expected.sent


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_workers_that_die_at_random_moments_do_not_change_the_results(
    case: str, tmp_path: Path
) -> None:
    """Nor does it matter how often stages save their state: here at times that were measured."""
    plain = execute(_job(tmp_path / "plain", *CASES[case]))
    job = _job(tmp_path / "run", *CASES[case], "recover=stage", "recover.every=3")
    unhurt = Journals(job, tmp_path / "unhurt")
    _assert_equal(execute(job, unhurt), plain)
    random = Random(case)
    for number in range(2):
        deaths = {
            seat: random.sample(range(1, unhurt.activities[seat]), random.randint(0, 3))
            for seat in job.seats
        }
        deaths[random.choice(job.seats)] += [2, 40, 41]
        hurt = _job(tmp_path, *CASES[case], "recover=stage") if number == 1 else job
        here = replace(hurt, run_dir=str(tmp_path / f"run-{number}"))
        _assert_equal(execute(here, Journals(here, tmp_path / str(number), deaths)), plain)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 17])
def test_a_worker_that_dies_at_any_activity_does_not_change_the_results(
    tmp_path: Path, every: int
) -> None:
    short = ["epochs=1", "data.train_samples=40", "checkpoint.every=2", "recover=stage"]
    job = _job(tmp_path / "run", *RESNET, "gpus=2", *short, "recover.every=2")
    unhurt = Journals(job, tmp_path / "unhurt")
    expected = execute(job, unhurt)
    for seat in job.seats:
        for moment in range(1, unhurt.activities[seat] + 1, every):
            name = f"{seat.stage}-{moment}"
            here = replace(job, run_dir=str(tmp_path / f"run-{name}"))
            deaths = {seat: [moment]}
            _assert_equal(execute(here, Journals(here, tmp_path / name, deaths)), expected)


def test_steps_and_messages_of_a_replay_are_not_counted_twice(tmp_path: Path) -> None:
    """The display of the run counts neither steps nor messages twice."""
    job = _job(tmp_path, *VIT, "gpus=2", "recover=stage", "recover.every=3")
    unhurt = Journals(job, tmp_path / "unhurt")
    execute(job, unhurt)
    deaths = {Seat(0): [45, 90], Seat(1): [70]}
    hurt = Journals(replace(job, run_dir=str(tmp_path / "run")), tmp_path / "hurt", deaths)
    execute(job, hurt)
    for seat in job.seats:
        mine, theirs = hurt.pulses[seat], unhurt.pulses[seat]
        assert (mine.sent, mine.received, mine.step) == (theirs.sent, theirs.received, theirs.step)


def test_a_restart_repeats_at_most_the_batches_that_the_user_allows(tmp_path: Path) -> None:
    job = _job(tmp_path, *VIT, "gpus=2", "recover=stage", "recover.every=3")
    unhurt = Journals(job, tmp_path / "unhurt")
    execute(job, unhurt)
    seat = Seat(1)
    for moment in (30, 60, 90):
        hurt = Journals(job, tmp_path / f"hurt-{moment}", {seat: [moment]})
        execute(job, hurt)
        again = hurt.activities[seat] - unhurt.activities[seat]
        assert 0 < again <= 3 * 12 + 2  # instructions of a batch; opening, and the start
