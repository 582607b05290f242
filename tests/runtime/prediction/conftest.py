"""What predictions are tested on."""

import pytest

from ppll_cli.runtime.prediction import predict as predicting


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine on which nothing computes beside what is measured."""
    monkeypatch.setattr(predicting, "usable_cores", lambda: 1)
