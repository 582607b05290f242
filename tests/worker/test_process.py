"""Which errors of a worker a restart may remedy."""

import pytest

from ppll_cli.errors import ConfigError, NonFiniteError, ReplayError, RunFailedError
from ppll_cli.worker import process


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (NonFiniteError(3, 0, None), True),
        (ReplayError("the tensor 'x'", "TrainBatch(step=3)"), True),
        (ConfigError("data.root", "birds", "cannot be read"), True),
        (RunFailedError("a data loader is gone (killed by SIGKILL)"), False),
        (RuntimeError("device-side assert"), False),
        (MemoryError(), False),
    ],
)
def test_an_error_that_comes_again_is_final(error: Exception, final: bool) -> None:
    """A loader that was killed once ended a run with `recover=stage`."""
    assert process.is_final(error) == final
