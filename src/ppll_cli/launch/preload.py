"""Sets up the fork server. Workers are forked from it, so they inherit its imports and settings.

Only the fork server imports this file.
"""

import ctypes
import gc
import os
import signal
import sys

from ppll_cli.leaves.forkserver import SAFE_PATH
from ppll_cli.leaves.programs import STOPPING

gc.disable()  # garbage collection would take a fifth of the time of the imports


def _end_with_parent(number: int) -> None:
    """Ask for signal `number` when the thread that started this process ends; 0 asks for none."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


# The fork server notices the end of its parent only after the imports below, which take seconds.
# Until then, it asks the kernel to kill it when the thread that started it ends. The last line of
# this file withdraws this request, because that thread may end before the program does.
_end_with_parent(signal.SIGKILL)

# A terminal or a batch system signals all processes of a run, but only the parent handles signals.
for number in STOPPING:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
if os.environ.get(SAFE_PATH[0]) == SAFE_PATH[1]:  # programs that workers start must not get it
    del os.environ[SAFE_PATH[0]]

from ppll_cli.transport.descriptors import raise_limit  # noqa: E402

raise_limit()

# Without the next import, each worker would import this module in its first backward, which takes a
# second. Only workers that need torch's compiler or torchvision import them, because each of these
# imports takes nearly as long as the import of torch.
import torch.fx.experimental.symbolic_shapes  # noqa: E402, F401

import ppll_cli.worker.process  # noqa: E402, F401
from ppll_cli.worker.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
gc.freeze()  # modules stay to the end, so the garbage collector need not visit them
gc.enable()
_end_with_parent(0)
