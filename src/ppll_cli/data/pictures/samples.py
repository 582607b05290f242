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

    `psnr` compares the view with the original, in dB, as the run's metric does. It is None for the
    original. It is also None if the piece is so small that all its pixels belong to the border that
    the metric leaves out.
    """

    name: str  # what the view shows
    pixels: Bytes  # uint8 [H, W, 3]; all views of a piece have the same shape
    psnr: float | None

    @property
    def caption(self) -> str:
        """The text above the view."""
        return self.name if self.psnr is None else f"{self.name}: PSNR {self.psnr:.2f} dB"


def views(low: Bytes, high: Bytes, scale: int, overlap: int, predict: Predict) -> list[View]:
    """Return four views of a picture's middle: input, bicubic, the model's output, and original.

    The small picture is uint8 [H, W, 3], the large one uint8 [sH, sW, 3]. `predict`, the model,
    maps float32 [1, 3, H, W] to [1, 3, sH, sW], both in [0, 1]. The model also reads `overlap`
    pixels of the small picture on each side of the middle.
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
    """Enlarge a picture, float32 [1, 3, H, W], tile by tile, and join the enlarged tiles.

    Tiles may overlap; the result has only the used pixels of each tile (see `tiles.Span`).
    The model maps float32 [1, 3, h, w] to [1, 3, sh, sw], all in [0, 1]. The tiles are ordered by
    rows, and from left to right in a row.
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
    """Return the PSNR, in dB, of two pictures without their borders; None if no pixel is left."""
    one, other = (inner_luma(torch.from_numpy(np.array(each)), border) for each in (made, wanted))
    if not one.numel():
        return None
    return psnr(float((one - other).double().square().sum()), one.numel())


def captioned(found: Sequence[View]) -> Image.Image:
    """Draw views in two columns, each below its caption.

    An integer factor enlarges the views so that the drawing is about `PAGE_WIDTH` pixels wide.
    """
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
