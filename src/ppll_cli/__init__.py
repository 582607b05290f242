"""ppll-run: pipeline-parallel local learning of vision models, from the command line."""

import os
import sys

# `python -m ppll_cli` puts the current directory first on `sys.path`. This entry is removed,
# because a file `torch.py` or `signal.py` there would be imported instead of the real module. With
# `python -m`, `sys.argv[0]` is "-m" while this file is imported.
if (
    getattr(sys, "argv", [])[:1] == ["-m"]
    and not sys.flags.safe_path
    and sys.path[:1] != [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
):
    del sys.path[0]

from ppll_cli.leaves.programs import end_at_signals

end_at_signals()  # until the program is imported and handles signals itself

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppll_cli.leaves.cache import keep_compiled_code

if TYPE_CHECKING:
    import torch

    from ppll_cli.launch.loaded import LoadedRun

__all__ = ["__version__", "load_run"]

__version__ = "0.1.0"

# In every process, this must come before the import of torch's compiler, which is imported by the
# constructor of a torch optimizer, for example.
keep_compiled_code()


def load_run(
    run_dir: str | Path,
    *,
    checkpoint: str | int = "last",
    ema: bool = False,
    device: "str | torch.device" = "cpu",
    classes: Sequence[Any] = (),
) -> "LoadedRun":
    """Load the model of a run, and the run's data set, which defines image size and class names.

    Args:
        run_dir: The run directory.
        checkpoint: The checkpoint to load: `last`, `best`, or a number of optimizer steps.
        ema: Whether to load the averages of the weights instead of the weights. Only a run with
            `optim.ema` keeps averages.
        device: The device on which to put the model.
        classes: Your own classes for the run's model and data, or their dotted paths. Only these
            classes, and those of this program, are imported.

    Returns:
        A `ppll_cli.launch.loaded.LoadedRun`, with the model in evaluation mode and the data set.

    Raises:
        ConfigError: The folder is no run directory; the checkpoint is missing, is damaged or has no
            averages; the data cannot be loaded; the device cannot be used; or one of your own
            classes is not in `classes`.
        RuntimeError: `device` is a text that names no device.
    """
    from ppll_cli.launch.loaded import load_run as load  # torch takes seconds to import

    return load(run_dir, checkpoint=checkpoint, ema=ema, device=device, classes=classes)
