"""Where `weights=` leads. Imports no torch."""

import os
from pathlib import Path

from ppll_cli.config.targets import start_folder
from ppll_cli.errors import ConfigError

MODEL_FILE = "model.safetensors"
"""The trained backbone in a run directory."""


def absolute_path(given: str) -> str:
    """The place as an absolute path; a relative one is seen from where the program was started."""
    return os.path.abspath(start_folder() / os.path.expanduser(given))


def weights_file(given: str) -> Path:
    """The file that a run is to begin with: the one named, or the model of the run named.

    Raises:
        ConfigError: There is no such file.
    """
    place = Path(absolute_path(given))
    if os.path.isfile(place):
        return place
    remedy = "give a file of weights, or a run directory"
    if not os.path.isdir(place):
        problem = "is no regular file" if os.path.lexists(place) else "there is no such file"
        raise ConfigError("weights", given, problem, remedy)
    if not (place / MODEL_FILE).is_file():
        raise ConfigError("weights", given, f"that folder holds no {MODEL_FILE}", remedy)
    return place / MODEL_FILE
