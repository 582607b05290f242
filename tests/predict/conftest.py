"""Fixtures for tests of predictions."""

import pytest

from ppll_cli.predict import speed as predicting


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a machine with one core, on which nothing computes beside the measured process."""
    monkeypatch.setattr(predicting, "usable_cores", lambda: 1)
