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


def load_run(
    run_dir: str | Path,
    *,
    checkpoint: str | int = "last",
    ema: bool = False,
    device: "str | torch.device" = "cpu",
    classes: Sequence[Any] = (),
) -> "LoadedRun":
    """Load the model of a run from its directory, with what belongs to it.

    The data set that it was trained on is loaded as well: it knows the images and the classes.

    Args:
        run_dir: The run directory.
        checkpoint: Which weights: `last`, `best`, or a number of optimizer steps.
        ema: Take the averages of the weights, which a run with `optim.ema` keeps.
        device: Where the model is to be.
        classes: Classes of your own that the run used, or their dotted paths. A class that only the
            run directory names is not imported.

    Raises:
        ConfigError: The folder is no run, it lacks this checkpoint or averages, or the run used a
            class of the user's own that is not among `classes`.
    """
    from ppll_cli.launch.loaded import load_run as load  # torch takes seconds to import

    return load(run_dir, checkpoint=checkpoint, ema=ema, device=device, classes=classes)
