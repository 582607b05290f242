"""A job makes the same units in every process."""

from dataclasses import replace
from pathlib import Path

import pytest

from ppll_cli.errors import ConfigError
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
