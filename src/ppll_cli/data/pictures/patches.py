"""Makes the batches of super-resolution: patches for training, tiles for evaluation.

Batch b of epoch e depends only on (seed, e, b). Legend: B batch, P height and width of a patch, H
height, W width, in pixels of the small picture; s scale.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.data.batches import SplitBatches, generator_of
from ppll_cli.data.files import Files
from ppll_cli.data.pictures.cache import Bytes, Pictures
from ppll_cli.data.pictures.tiles import PictureSplit, Span
from ppll_cli.data.staging import to_device
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.picture_quality import RADIUS
from ppll_cli.tasks.super_resolution import BICUBIC, TARGET, TILE

if TYPE_CHECKING:  # not at run time: the data set's file imports this file
    from ppll_cli.data.pictures.dataset import PictureDataset


class PatchBatches(SplitBatches[Files, PictureSplit]):
    """Makes batches of patches for training, and batches of tiles for evaluation.

    Whole pictures stay on the CPU; only patches and tiles are copied to the device.
    """

    dataset: "PictureDataset"

    in_advance = True

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        """Make a training batch of patches at random places of random pictures.

        Returns:
            A dictionary with small patches (`IMAGE`) [B, 3, P, P] and large patches (`TARGET`)
            [B, 3, sP, sP], float32 in [0, 1]. `TILE`, int64, and `BICUBIC`, float64, are empty,
            [B, 0].
        """
        assert 0 <= batch < self.steps_per_epoch
        split = self.splits["train"]
        count = min(self.batch_size, len(split) - batch * self.batch_size)
        generator = generator_of(seeding.augmentation(self.seed, epoch, batch))
        draws = torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist()
        turns = torch.randint(8, (count,), generator=generator).tolist()
        patch, found = self.dataset.patch, []
        for (which, down, right), turn in zip(draws, turns, strict=True):
            number = int(which * len(split.pictures))
            height, width, _ = split.pictures.low[number].shape
            top, left = int(down * (height - patch + 1)), int(right * (width - patch + 1))
            rows, columns = slice(top, top + patch), slice(left, left + patch)
            pair = self._pieces(split.pictures, number, rows, columns)
            found.append([_turned(piece, turn * self.dataset.flip) for piece in pair])
        low, high = zip(*found, strict=True)
        return self._named(low, high, torch.empty(count, 0), torch.empty(count, 0))

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        """Make a batch of the tile with number `batch`.

        `size`, the number of tiles, must be 1, because tiles have different shapes.

        Returns:
            A dictionary with the small tile (`IMAGE`) [1, 3, H, W] and the large tile (`TARGET`)
            [1, 3, sH, sW], float32 in [0, 1], and with `TILE` and `BICUBIC` (see
            `ppll_cli.tasks.super_resolution`).
        """
        here = self.splits[split]
        assert size == 1
        assert 0 <= batch < len(here)
        tile = here.tiles[batch]
        s, (height, width) = self.dataset.scale, here.pictures.low[tile.picture].shape[:2]
        sides = ((tile.rows, height), (tile.columns, width))
        rows, columns = (slice(span.start, span.stop) for span, _ in sides)
        low, high = self._pieces(here.pictures, tile.picture, rows, columns)
        evaluated = [
            _evaluated(span, side, s, border) for border in (s, s + RADIUS) for span, side in sides
        ]
        numbers = [tile.picture, *(number for bounds in evaluated for number in bounds)]
        first = batch == 0 or here.tiles[batch - 1].picture != tile.picture
        assert here.pictures.quality is not None
        quality = here.pictures.quality[tile.picture] if first else (0.0, 0.0)
        return self._named([low], [high], torch.tensor([numbers]), torch.tensor([quality]))

    def _pieces(
        self, pictures: Pictures, number: int, rows: slice, columns: slice
    ) -> tuple[Bytes, Bytes]:
        s = self.dataset.scale
        large = slice(s * rows.start, s * rows.stop), slice(s * columns.start, s * columns.stop)
        return pictures.low[number][rows, columns], pictures.high[number][large]

    def _named(
        self, low: Sequence[Bytes], high: Sequence[Bytes], tile: Tensor, bicubic: Tensor
    ) -> dict[str, Tensor]:
        return {
            IMAGE: as_images(low, self.device),
            TARGET: as_images(high, self.device),
            TILE: to_device(tile.to(torch.int64), self.device),
            BICUBIC: to_device(bicubic.to(torch.float64), self.device),
        }


def as_images(pictures: Sequence[Bytes], device: torch.device) -> Tensor:
    """Convert B pictures, each uint8 [H, W, 3], to float32 [B, 3, H, W] in [0, 1] on a device."""
    stacked = to_device(torch.from_numpy(np.stack(pictures)), device)
    return stacked.permute(0, 3, 1, 2).contiguous().float().div_(255)


def _turned(patch: Bytes, turn: int) -> Bytes:
    patch = np.rot90(patch, turn % 4)
    return patch[:, ::-1] if turn >= 4 else patch


def _evaluated(span: Span, side: int, scale: int, border: int) -> tuple[int, int]:
    # `span` and `side` count pixels of the small picture; `border` and the result count those of
    # the large one. The result is relative to the tile.
    first = max(scale * span.first, border)
    behind = min(scale * span.behind, scale * side - border)
    return first - scale * span.start, behind - scale * span.start
