"""Imported only by the fork server: every worker inherits what this module sets up."""

import ctypes
import gc
import os
import signal
import sys

from ppll_cli.leaves.forkserver import SAFE_PATH, STOPPING


def _end_with_parent(number: int) -> None:
    """Have the kernel send this signal to us when the thread that started us has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


# Once the server listens, it notices by itself that its parent has ended; the imports before that
# take seconds. The request ends with the imports (at the bottom of this file), because the thread
# that started us may end before the program does.
_end_with_parent(signal.SIGKILL)

# A terminal or a batch system signals the whole process group, but the parent decides what stops
# and when. This comes before the imports, because they take seconds.
for number in STOPPING:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
if os.environ.get(SAFE_PATH[0]) == SAFE_PATH[1]:  # programs that workers start do not inherit it
    del os.environ[SAFE_PATH[0]]

from ppll_cli.transport.descriptors import raise_limit  # noqa: E402

raise_limit()

# A backward imports this, which would cost every worker a second. torch's compiler and torchvision
# are left to the workers that need them: each takes most of the time of importing torch.
import torch.fx.experimental.symbolic_shapes  # noqa: E402, F401

import ppll_cli.worker.process  # noqa: E402, F401
from ppll_cli.worker.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
gc.freeze()  # imported objects stay to the end: the garbage collector need not visit them
_end_with_parent(0)
