"""Pictures of what a model makes of pictures."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ppll_cli.data.pictures.cache import Bytes

SIDE = 96
"""Height and width of what is shown, in pixels of the small picture."""


def side_by_side(
    low: Bytes, high: Bytes, scale: int, overlap: int, predict: Callable[[Tensor], Tensor]
) -> Image.Image:
    """The middle of a picture: its pixels, bicubic enlargement, what a model makes, the original.

    Args:
        low: The small picture, uint8 [H, W, 3].
        high: The large one, uint8 [sH, sW, 3].
        scale: s.
        overlap: How far the model looks, in pixels of the small picture.
        predict: The model: [1, 3, H, W] to [1, 3, sH, sW], in [0, 1].
    """
    height, width = (min(side, SIDE) for side in low.shape[:2])
    top, left = (low.shape[0] - height) // 2, (low.shape[1] - width) // 2
    above, before = max(0, top - overlap), max(0, left - overlap)
    seen = low[above : top + height + overlap, before : left + width + overlap]
    image = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float() / 255
    made = (predict(image)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    around = Image.fromarray(np.array(seen))
    size = (scale * around.width, scale * around.height)
    rows = slice(scale * (top - above), scale * (top - above + height))
    columns = slice(scale * (left - before), scale * (left - before + width))
    views = [np.asarray(around.resize(size, Image.Resampling.NEAREST))[rows, columns]]
    views.append(np.asarray(around.resize(size, Image.Resampling.BICUBIC))[rows, columns])
    views.append(made[rows, columns])
    views.append(high[scale * top : scale * (top + height), scale * left : scale * (left + width)])
    return Image.fromarray(np.concatenate(views, axis=1))
