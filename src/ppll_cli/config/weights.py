"""Finds the file that the setting `weights=` names. Imports no torch."""

import os
from pathlib import Path

from ppll_cli.config.targets import start_folder
from ppll_cli.errors import ConfigError

MODEL_FILE = "model.safetensors"
"""Name of the file with the trained backbone, in a run directory."""

EMA_FILE = "model_ema.safetensors"
"""Name of the file with the averages of the backbone's weights, in a run directory."""


def absolute_path(given: str) -> str:
    """Make a path absolute, and replace `~` by the user's home folder.

    A relative path begins in the folder where the program was started.
    """
    return os.path.abspath(start_folder() / os.path.expanduser(given))


def weights_file(given: str) -> Path:
    """Return the file from which a run takes its initial weights.

    `given` is the path of this file, or of a run directory with a `model.safetensors`.

    Raises:
        ConfigError: There is no such file.
    """
    place = Path(absolute_path(given))
    if os.path.isfile(place):
        return place
    remedy = "give a file of weights, or a run directory"
    if not os.path.isdir(place):
        problem = "is not a regular file" if os.path.lexists(place) else "there is no such file"
        raise ConfigError("weights", given, problem, remedy)
    if not os.path.isfile(place / MODEL_FILE):
        raise ConfigError("weights", given, f"that folder holds no {MODEL_FILE}", remedy)
    return place / MODEL_FILE
