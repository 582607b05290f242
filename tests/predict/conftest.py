"""Fixtures for tests of predictions."""

from pathlib import Path

import pytest

from ppll_cli.predict import profile
from ppll_cli.predict import speed as predicting


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a machine with one core, on which nothing computes beside the measured process."""
    for module in (predicting, profile):
        monkeypatch.setattr(module, "usable_cores", lambda: 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which times are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppll-run" / "profile"
