"""Draws a model's enlargements beside the originals, and enlarges whole pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ppll_cli.data.drawing import INK, PAGE_WIDTH, PAPER, font_of, label_size, text_size
from ppll_cli.data.pictures.cache import Bytes
from ppll_cli.data.pictures.tiles import Tile
from ppll_cli.data.source import Predict
from ppll_cli.tasks.picture_quality import eight_bits, inner_luma, psnr

SIDE = 96
"""Largest height and width of the piece that a sample shows, in pixels of the small picture."""

GAP = 6
"""Space between the views in a sample picture, in pixels."""


class View(NamedTuple):
    """A version of a piece of a picture, such as the model's enlargement.

    Attributes:
        name: What the view shows.
        pixels: uint8 [H, W, 3]; all views of a piece have the same shape.
        psnr: PSNR in dB against the original, without border pixels. None if the view
            is the original, or if the piece has only border pixels.
    """

    name: str
    pixels: Bytes
    psnr: float | None

    @property
    def caption(self) -> str:
        """The text above the view."""
        return self.name if self.psnr is None else f"{self.name}: PSNR {self.psnr:.2f} dB"


def views(low: Bytes, high: Bytes, scale: int, overlap: int, predict: Predict) -> list[View]:
    """Return four views of a picture's middle: input, bicubic, the model's output, and original.

    Args:
        low: The small picture that the model enlarges, uint8 [H, W, 3].
        high: The original large picture, uint8 [sH, sW, 3].
        scale: The factor s.
        overlap: Number of pixels around the middle of `low` that the model also reads.
        predict: The model. It maps float32 [1, 3, h, w] in [0, 1] to [1, 3, sh, sw].
    """
    height, width = (min(side, SIDE) for side in low.shape[:2])
    top, left = (low.shape[0] - height) // 2, (low.shape[1] - width) // 2
    above, before = max(0, top - overlap), max(0, left - overlap)
    seen = low[above : top + height + overlap, before : left + width + overlap]
    image = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float() / 255
    made = (predict(image)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    around = Image.fromarray(np.array(seen))
    size = (scale * around.width, scale * around.height)
    repeated, bicubic = (
        np.asarray(around.resize(size, way))
        for way in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
    )
    rows = slice(scale * (top - above), scale * (top - above + height))
    columns = slice(scale * (left - before), scale * (left - before + width))
    named = {f"input, {width}x{height} pixels": repeated, "bicubic": bicubic, "the model": made}
    original = high[scale * top : scale * (top + height), scale * left : scale * (left + width)]
    found = []
    for name, whole in named.items():
        pixels = whole[rows, columns]
        found.append(View(name, pixels, _psnr(pixels, original, scale)))
    return [*found, View("original", original, None)]


def enlarged(images: Tensor, tiles: Sequence[Tile], predict: Predict) -> Image.Image:
    """Enlarge a picture tile by tile, and join the enlarged tiles.

    Tiles may overlap; the result has only the used pixels of each tile (see `tiles.Span`).

    Args:
        images: The picture, float32 [1, 3, H, W] in [0, 1].
        tiles: The picture's tiles, row by row, and from left to right in a row.
        predict: The model. It maps float32 [1, 3, h, w] in [0, 1] to [1, 3, sh, sw].
    """
    rows: dict[int, list[Tensor]] = {}
    for _, down, across in tiles:
        made = predict(images[:, :, down.start : down.stop, across.start : across.stop])[0]
        scale = made.shape[1] // (down.stop - down.start)
        inside = [
            slice(scale * (span.first - span.start), scale * (span.behind - span.start))
            for span in (down, across)
        ]
        rows.setdefault(down.first, []).append(made[:, inside[0], inside[1]])
    whole = torch.cat([torch.cat(pieces, dim=2) for pieces in rows.values()], dim=1)
    return Image.fromarray(eight_bits(whole).byte().permute(1, 2, 0).cpu().numpy())


def _psnr(made: Bytes, wanted: Bytes, border: int) -> float | None:
    one, other = (inner_luma(torch.from_numpy(np.array(each)), border) for each in (made, wanted))
    if not one.numel():
        return None
    return psnr(float((one - other).double().square().sum()), one.numel())


def captioned(found: Sequence[View]) -> Image.Image:
    """Draw views, each below its caption, in two columns that fill about `PAGE_WIDTH` pixels."""
    height, width = found[0].pixels.shape[:2]
    factor = max(1, round((PAGE_WIDTH - 3 * GAP) / 2 / width))
    size = text_size(2 * factor * width + 3 * GAP)
    font = font_of(size)
    texts = [label_size(view.caption, font, size) for view in found]
    column = max(factor * width, *(wide for wide, _ in texts)) + GAP
    line = texts[0][1] + factor * height + GAP
    rows = -(-len(found) // 2)
    picture = Image.new("RGB", (2 * column + GAP, rows * line + GAP // 2), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (view, (_, text)) in enumerate(zip(found, texts, strict=True)):
        left, top = GAP + number % 2 * column, number // 2 * line
        draw.text((left, top + text / 2), view.caption, fill=INK, font=font, anchor="lm")
        large = view.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        picture.paste(Image.fromarray(large), (left, top + text))
    return picture
