"""Imported by the fork server, and only there: what is done here, every worker inherits."""

import signal

# A terminal or a batch system signals the whole process group. What is to stop, and when, is for
# the parent to decide. First, because the imports take seconds.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)

from ppll_cli.transport.descriptors import raise_limit  # noqa: E402

raise_limit()

# Making an optimizer imports this, seconds that every worker would spend for itself.
import torch._dynamo  # noqa: E402, F401

import ppll_cli.runtime.process  # noqa: E402, F401
from ppll_cli.runtime.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
