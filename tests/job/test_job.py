"""A job makes the same units, and has the same instructions, in every process."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.pipeline.instructions import Compute
from ppll_cli.pipeline.schedule import Place
from ppll_cli.pipeline.schedules.gpipe import GPipe
from tests.conftest import own_model
from tests.worker.inside import job_inside


def test_units_that_differ_from_those_before_the_start_are_refused(tmp_path: Path) -> None:
    """A model could loop over a set of texts, whose order differs between processes."""
    job = job_inside(tmp_path, *own_model("Idle"))
    assert [unit.name for unit in job.units()] == ["flat", "linear", "out"]
    other = replace(job, names=("linear", "flat", "out"))
    said = "made flat, linear, out, but before the start it made linear, flat, out; it must always"
    with pytest.raises(ConfigError) as caught:
        other.units()
    assert said in str(caught.value)


class Local(GPipe):
    """A schedule that works in only one process."""

    works = True

    def batch(self, place: Place) -> Iterator[Compute]:
        assert self.works
        return super().batch(place)


def test_workers_get_the_instructions_that_the_parent_has_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule that drew its order at its import left the workers waiting for each other."""
    schedule = ["schedule=gpipe", f"schedule._target_={__name__}.Local", "gpus=2"]
    job = job_inside(tmp_path, *schedule, "model.dim=16", "model.depth=2", "model.heads=2")
    assert job.channels
    sent = pickle.dumps(job)
    monkeypatch.setattr(Local, "works", False)
    assert pickle.loads(sent).streams() == job.streams()
    with pytest.raises(AssertionError):
        replace(job).streams()
