"""Errors of the file system while Hydra starts a run."""

import errno

import pytest

from ppll_cli.cli.explain import explain


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "hydra.run.dir=there: Hydra cannot write into it: No space left on device; give",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "there"),
            "hydra.run.dir=there: Read-only file system; give",
        ),
    ],
)
def test_a_folder_that_cannot_be_filled_is_named(error: OSError, line: str) -> None:
    """The word `device` in the system's text was once taken for the key."""
    assert str(explain(error, ["device=cpu", "hydra.run.dir=there"])).startswith(line)
