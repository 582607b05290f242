"""Figures that are drawn without a screen, and without matplotlib's global state."""

import logging
import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ppll_cli.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """A figure of this size, in inches."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its caches
    # matplotlib refuses to be imported under a backend that it does not know, and none is needed.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: Path, dpi: int) -> None:
    """Write it as PNG, as a whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    image = BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    write_bytes(path, image.getvalue())
