"""Draws a confusion matrix: how often a model predicts each class for each true class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppll_cli.leaves.printable import printable
from ppll_cli.observe.figures import WIDTH, figure

MOST_NUMBERED = 20
"""Largest number of classes for which cells show numbers."""

MOST_NAMED = 60
"""Largest number of names at an axis. With more classes, only every n-th is named."""

LONGEST_NAME = 18
"""Largest length of a class name, in characters; a longer name is cut at the end."""


def picture(
    path: Path, confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> None:
    """Draw a matrix of counts into a PNG file.

    The matrix has a row for each true class and a column for each predicted class. The shade of a
    cell shows its fraction of the samples in its row.

    Raises:
        OSError: The file cannot be written.
    """
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    step = -(-len(classes) // MOST_NAMED)
    places = range(0, len(classes), step)
    names = [_short(printable(classes[place])) for place in places]
    with figure(path, WIDTH * 0.95) as made:
        made.suptitle(printable(title), fontsize=10)
        axes = made.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        made.colorbar(image, ax=axes, fraction=0.04, label="share of the true class's samples")
        size = 8 if len(names) <= MOST_NUMBERED else 6
        axes.set_xticks(places, names, rotation=90, fontsize=size)
        axes.set_yticks(places, names, fontsize=size)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if len(classes) <= MOST_NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    text = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
                    axes.text(column, row, str(count), text)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
