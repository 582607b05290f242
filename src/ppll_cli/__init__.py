"""ppll-run: pipeline-parallel local learning of vision models, from the command line."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppll_cli.leaves.cache import keep_compiled_code

if TYPE_CHECKING:
    import torch

    from ppll_cli.launch.loaded import LoadedRun

__all__ = ["__version__", "load_run"]

__version__ = "0.1.0"

# `python -m ppll_cli` puts the current directory first on `sys.path`. A file `torch.py` in it would
# be imported instead of torch. While Python looks for the module, `sys.argv[0]` is "-m".
if (
    getattr(sys, "argv", [])[:1] == ["-m"]
    and not sys.flags.safe_path
    and sys.path[:1] != [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
):
    del sys.path[0]

# This must run before anything imports torch's compiler, in every process. Creating an optimizer of
# torch imports it.
keep_compiled_code()


def load_run(
    run_dir: str | Path,
    *,
    checkpoint: str | int = "last",
    ema: bool = False,
    device: "str | torch.device" = "cpu",
    classes: Sequence[Any] = (),
) -> "LoadedRun":
    """Load the model of a run, and the data set on which it was trained, from the run directory.

    The data set describes the images and names the classes.

    Args:
        run_dir: The run directory.
        checkpoint: The checkpoint to load: `last`, `best`, or a number of optimizer steps.
        ema: Whether to load the averages of the weights, which a run with `optim.ema` keeps.
        device: The device on which to put the model.
        classes: Classes of your own that the run used, or their dotted paths. The function imports
            no class of a user that is missing here, even if the run directory names it.

    Raises:
        ConfigError: The folder is no run directory, the checkpoint or its averages are missing, or
            the run used a class of the user's own that is not among `classes`.
    """
    from ppll_cli.launch.loaded import load_run as load  # torch takes seconds to import

    return load(run_dir, checkpoint=checkpoint, ema=ema, device=device, classes=classes)
