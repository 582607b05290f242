"""Imported by the fork server, and only there: what is done here, every worker inherits."""

import ctypes
import gc
import os
import signal
import sys

from ppll_cli.leaves.forkserver import SAFE_PATH, STOPPING


def _end_with_parent(number: int) -> None:
    """Have the kernel send this signal when the thread that started this process is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


# The server notices the end of its parent once it listens; the imports take seconds. Not for
# longer, because that thread may end before the program does.
_end_with_parent(signal.SIGKILL)

# A terminal or a batch system signals the whole process group. What is to stop, and when, is for
# the parent to decide. First, because the imports take seconds.
for number in STOPPING:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
if os.environ.get(SAFE_PATH[0]) == SAFE_PATH[1]:  # it is not meant for what workers start
    del os.environ[SAFE_PATH[0]]

from ppll_cli.transport.descriptors import raise_limit  # noqa: E402

raise_limit()

# Making an optimizer imports this, seconds that every worker would spend for itself.
import torch._dynamo  # noqa: E402, F401

import ppll_cli.worker.process  # noqa: E402, F401
from ppll_cli.worker.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
gc.freeze()  # what is imported stays: nobody needs to go through it, least of all at the end
_end_with_parent(0)
