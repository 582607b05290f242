"""Draws figures without a screen, and without matplotlib's global state."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ppll_cli.leaves.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.4
"""Width in inches. At `DPI` it has twice the pixels of a web page's column, so that texts of 8
points and more can be read there."""

DPI = 165


@contextmanager
def figure(path: Path, height: float) -> Iterator["Figure"]:
    """Give a figure to draw into; at the end it is written as PNG, whole or not at all.

    It is light and opaque, which suits light and dark pages, and ignores the user's style for
    matplotlib.

    Args:
        path: The PNG file.
        height: Height in inches.

    Raises:
        OSError: The file cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports on its caches otherwise
    # matplotlib cannot be imported if MPLBACKEND names an unknown backend. None is needed here.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    image = BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        made = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(made)
        yield made
        made.savefig(image, format="png", dpi="figure", transparent=False, facecolor="white")
    write_bytes(path, image.getvalue())
