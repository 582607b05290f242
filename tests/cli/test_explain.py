"""Errors of the file system while Hydra starts a run."""

import errno

import pytest

from ppll_cli.cli.explain import explain


def test_the_folder_of_a_sweep_is_named() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/home/me/there/0")
    assert str(explain(error, ["--multirun", "seed=1,2", "hydra.sweep.dir=there"])) == (
        "hydra.sweep.dir=there: /home/me/there/0: Permission denied; "
        "give hydra.sweep.dir=FOLDER with a folder that you can write to"
    )


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
