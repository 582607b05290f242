"""Figures that are drawn without a screen, and without matplotlib's global state."""

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
"""Inches. At `DPI` that is twice the width that a page shows, so that texts of 8 points and more
can still be read there."""

DPI = 165


@contextmanager
def figure(path: Path, height: float) -> Iterator["Figure"]:
    """A figure to draw into; written as PNG at the end, as a whole or not at all.

    It is light and opaque, for pages of either kind, whatever style the user has chosen for
    matplotlib.

    Args:
        path: Where it is written.
        height: In inches.

    Raises:
        OSError: It cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its caches
    # matplotlib refuses to be imported under a backend that it does not know, and none is needed.
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
