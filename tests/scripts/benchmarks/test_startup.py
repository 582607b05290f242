import pytest

from scripts.benchmarks import startup
from scripts.benchmarks.runs import RunFailedError


@pytest.mark.slow
def test_the_first_step_is_timed_and_compared_with_importing_torch() -> None:
    result = startup.measure(1)
    assert result["first_step_s"] > 0
    assert result["import_torch_s"] > 0
    ratio = result["first_step_s"] / result["import_torch_s"]
    assert result["first_step_over_import_torch"] == ratio


@pytest.mark.slow
def test_a_run_without_a_step_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "OVERRIDES", ["gpus=0"])
    with pytest.raises(RunFailedError, match="gpus=0"):
        startup.measure(1)
