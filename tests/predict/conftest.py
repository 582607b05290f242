"""What predictions are tested on."""

import pytest

from ppll_cli.predict import speed as predicting


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine on which nothing computes beside what is measured."""
    monkeypatch.setattr(predicting, "usable_cores", lambda: 1)
