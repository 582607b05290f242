"""Messages of exceptions, in this process and in others."""

import pickle

import pytest

from ppll_cli.errors import (
    ConfigError,
    DeadlockError,
    Interrupted,
    PpllError,
    ScheduleError,
    WorkerFailedError,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("optim.lr", 0, "must be above 0"), "optim.lr=0: must be above 0"),
        (ConfigError("gpus", 9, "are too many", "use 8"), "gpus=9: are too many; use 8"),
        (ConfigError("compile", True, "does not apply"), "compile=true: does not apply"),
        (ConfigError("data.root", None, "must be given"), "data.root=null: must be given"),
        (ConfigError("seed", 1, "is taken"), "seed=1: is taken"),
        (
            WorkerFailedError({"stage": 1, "device": "cuda:1", "error": "ValueError: no"}),
            "stage 1 (cuda:1): ValueError: no",
        ),
        (Interrupted(15), "stopped by signal 15"),
        (ScheduleError("a message"), "a message"),
        (DeadlockError("a message"), "a message"),
    ],
)
def test_a_pickled_error_keeps_its_message(error: PpllError, message: str) -> None:
    """Sweeps may run in other processes, and exceptions are pickled to return from there."""
    assert str(error) == message
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == message
    assert vars(copy) == vars(error)


def test_a_pickled_error_keeps_a_value_that_is_not_text() -> None:
    copy = pickle.loads(pickle.dumps(ConfigError("optim.betas", [0.9], "has one", "give two")))
    assert (copy.key, copy.value, copy.problem, copy.remedy) == (
        "optim.betas",
        [0.9],
        "has one",
        "give two",
    )
