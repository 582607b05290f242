"""The log file of a run."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppll_cli.errors import Interrupted
from ppll_cli.observe.logs import LogFile, log_file, only_warn, to_file


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Add a log file to the root logger."""
    handler = LogFile(str(tmp_path / "run.log"))
    logging.getLogger().addHandler(handler)
    yield tmp_path / "run.log"
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_to_file_writes_only_to_the_log_file(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_file("one\ntwo r\u00e9sum\u00e9 \udcff")
    assert file.read_text() == "one\ntwo r\u00e9sum\u00e9 \\udcff\n"
    assert log_file() == file
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from its buffer
def test_a_full_disk_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Python would print a traceback for each line."""
    handler = LogFile("/dev/full")
    logger = logging.Logger("alone")
    logger.addHandler(handler)
    logger.warning("one")
    logger.warning("two")
    logging.shutdown([lambda: handler])
    expected = "the log file cannot be written: No space left on device: /dev/full\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("error", [RuntimeError("no font\nat all"), SystemExit(3)])
def test_an_error_in_an_optional_picture_is_logged_in_one_line(
    error: BaseException, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with only_warn("no picture"):
        raise error
    (message,) = caplog.messages
    assert message.startswith(f"no picture: {type(error).__name__}: ")
    assert "\n" not in message
    assert "Traceback" in file.read_text()


def test_a_signal_during_an_optional_picture_is_raised() -> None:
    with pytest.raises(Interrupted), only_warn("no picture"):
        raise Interrupted(2)


def test_a_log_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Otherwise anybody who can write into the folder could have a file of the user overwritten."""
    (tmp_path / "run.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        LogFile(str(tmp_path / "run.log"))
    assert not (tmp_path / "victim").exists()
