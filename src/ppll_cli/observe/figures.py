"""Draws figures without a screen, and without matplotlib's global state."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ppll_cli.leaves.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.4
"""Width of figures in inches. Text of 8 points is still readable if a web page shows a figure at
half its size in pixels."""

DPI = 165


@contextmanager
def figure(path: Path, height: float) -> Iterator["Figure"]:
    """Provide a figure to draw into, and write it as a PNG file at the end of the `with` block.

    `height` is in inches. The user's style for matplotlib has no effect.

    Raises:
        OSError: The file cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # suppresses notes on its caches
    # The import fails if MPLBACKEND names an unknown backend. Figures here always use Agg.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    image = BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A letter that the font lacks, as in a Chinese name of a class, is drawn as a box.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False  # a "$" in a name does not begin a formula
        # White, so that text is readable on dark pages too.
        made = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(made)
        yield made
        made.savefig(image, format="png", dpi="figure", transparent=False, facecolor="white")
    write_bytes(path, image.getvalue())
