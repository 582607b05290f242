"""ppll-run: pipeline-parallel local learning of vision models, from the command line."""

import os
import sys

from ppll_cli.leaves.cache import keep_compiled_code

__version__ = "0.1.0"

# `python -m ppll_cli` puts the current directory first on `sys.path`: a `torch.py` that lies there
# would be imported instead of torch. Python sets `-m` as the name while it looks for the module.
if (
    getattr(sys, "argv", [])[:1] == ["-m"]
    and not sys.flags.safe_path
    and sys.path[:1] != [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
):
    del sys.path[0]

# Before anything imports torch's compiler, in whatever process: making an optimizer does.
keep_compiled_code()
