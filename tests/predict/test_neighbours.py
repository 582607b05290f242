"""Processes that compute beside the measured one."""

import os
import pickle
import select
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest

from ppll_cli.config import settings
from ppll_cli.errors import WorkerFailedError
from ppll_cli.predict.meter import neighbours
from ppll_cli.prepare.preparation import profile_of
from ppll_cli.prepare.subject import examine
from tests.conftest import compose_config, own_model
from tests.predict.given import SMALL
from tests.predict.small import work

LIMIT_S = 30


def test_neighbours_end_after_the_measurement() -> None:
    with neighbours(work(), 2):
        assert len(active_children()) == 2
    assert not active_children()
    with pytest.raises(ZeroDivisionError), neighbours(work(), 1):
        raise ZeroDivisionError
    assert not active_children()


def test_a_failing_neighbour_is_reported() -> None:
    """A neighbour may never start, or fail while the body runs."""
    removed = [key for key in SMALL if not key.startswith("model")]
    whole = work()
    missing = {"model": {"_target_": "tests.own_models.Nothing"}}
    other = whole.setup.settings.model_copy(update=missing)
    broken = replace(whole, setup=replace(whole.setup, settings=other))
    with pytest.raises(WorkerFailedError, match="cannot be imported"), neighbours(broken, 1):
        pytest.fail("there is none")
    config, _ = compose_config([*removed, *own_model("Faulty", unit="second", act="kill")])
    parsed = settings.parse(config)
    found = profile_of(parsed, examine(parsed), "cpu")

    def wait_for_its_end() -> None:
        with neighbours(found._work([(index, False) for index in range(3)]), 1):
            (child,) = active_children()
            child.join(LIMIT_S)

    with pytest.raises(WorkerFailedError, match="the process is gone"):
        wait_for_its_end()
    assert not active_children()


PARENT = """
import os, sys, pickle
from multiprocessing import active_children
from ppll_cli.predict.meter import neighbours

if __name__ == "__main__":
    with neighbours(pickle.load(sys.stdin.buffer), 2):
        print(*(child.pid for child in active_children()), flush=True)
        sys.stdin.buffer.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no process descriptors here")
def test_neighbours_end_if_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pickle.dump(work(), parent.stdin)
        parent.stdin.flush()
        descriptors = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(descriptors) == 2
        parent.send_signal(signal.SIGKILL)
        for descriptor in descriptors:
            ended, _, _ = select.select([descriptor], [], [], LIMIT_S)
            os.close(descriptor)
            assert ended
