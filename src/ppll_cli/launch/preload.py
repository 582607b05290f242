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
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG; 0 switches it off


# The imports below take seconds. Until they are done, the fork server does not notice the end of
# its parent. So during the imports, the kernel kills the fork server when the thread that started
# it ends. The last line of this file switches this off, because that thread may end before the
# program does.
_end_with_parent(signal.SIGKILL)

# A terminal or a batch system signals all processes of a run, but only the parent handles signals.
for number in STOPPING:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
# Programs that workers start must not inherit this variable.
if os.environ.get(SAFE_PATH[0]) == SAFE_PATH[1]:
    del os.environ[SAFE_PATH[0]]

from ppll_cli.transport.descriptors import raise_limit  # noqa: E402

raise_limit()

# Each worker's first backward needs the following module, and importing it takes a second.
# Torch's compiler and torchvision are not imported here, because each of them takes nearly as long
# as torch: only the workers that need them import them.
import torch.fx.experimental.symbolic_shapes  # noqa: E402, F401

import ppll_cli.worker.process  # noqa: E402, F401
from ppll_cli.worker.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
gc.freeze()  # imported modules are never freed, so the garbage collector need not visit them
gc.enable()
_end_with_parent(0)
