"""What all programs check before they read their arguments."""

import os

import pytest

from ppll_cli.cli.arguments import check_surroundings
from ppll_cli.errors import ConfigError


def test_a_current_folder_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program once showed a traceback."""

    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    check_surroundings()
    monkeypatch.setattr(os, "getcwd", gone)
    monkeypatch.setenv("PWD", "/was/here")
    with pytest.raises(ConfigError, match=r"^PWD=/was/here: the current folder does not exist"):
        check_surroundings()
