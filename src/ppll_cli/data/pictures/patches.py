"""The batches of a run on pictures: patches for training, tiles for evaluation.

Batch b of epoch e depends on (seed, e, b) alone. Legend: B batch, P height and width of a patch,
H height, W width, s scale (pixels of the small picture).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.data.batches import generator_of, steps_per_epoch
from ppll_cli.data.pictures.cache import Bytes, Pictures
from ppll_cli.data.pictures.tiles import Span
from ppll_cli.data.staging import to_device
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.picture_quality import RADIUS
from ppll_cli.tasks.super_resolution import BICUBIC, TARGET, TILE


class Tile(NamedTuple):
    """A piece of a picture that is evaluated by itself."""

    picture: int
    rows: Span
    columns: Span


@dataclass(frozen=True)
class PictureSplit:
    """A split: its samples are as many random patches, or the tiles of its pictures.

    Attributes:
        pictures: The pictures.
        patches: In an epoch; 0 where there are tiles.
        tiles: In order.
    """

    pictures: Pictures
    patches: int = 0
    tiles: tuple[Tile, ...] = ()

    def __len__(self) -> int:
        return self.patches or len(self.tiles)


class PatchBatches:
    """Makes batches of pictures that stay where they are mapped; bytes go to the device.

    Args:
        splits: What the data set loaded.
        scale: s.
        patch: P.
        turned: Whether patches are mirrored and turned.
        drop_last: Whether a shorter last batch is left out.
        batch_size: Samples of a training batch.
        seed: The run's.
        device: Where batches are made.
    """

    def __init__(
        self,
        splits: Mapping[str, PictureSplit],
        *,
        scale: int,
        patch: int,
        turned: bool,
        drop_last: bool,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.splits, self.scale, self.patch, self.turned = splits, scale, patch, turned
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.steps_per_epoch = steps_per_epoch(len(splits["train"]), batch_size, drop_last)

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        """Patches at random places of random pictures, mirrored and turned; all draws on the CPU.

        Returns:
            Small [B, 3, P, P] and large [B, 3, sP, sP] pictures, float32 in [0, 1], and of what
            tiles have nothing, by the names of a batch's tensors.
        """
        assert 0 <= batch < self.steps_per_epoch
        split = self.splits["train"]
        count = min(self.batch_size, len(split) - batch * self.batch_size)
        generator = generator_of(seeding.augmentation(self.seed, epoch, batch))
        draws = torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist()
        turns = torch.randint(8, (count,), generator=generator).tolist()
        low: list[Bytes] = []
        high: list[Bytes] = []
        for (which, down, right), turn in zip(draws, turns, strict=True):
            number = int(which * len(split.pictures))
            small = split.pictures.low[number]
            top, left = (
                int(place * (side - self.patch + 1))
                for place, side in zip((down, right), small.shape, strict=False)
            )
            for pictures, s, found in (
                (split.pictures.low, 1, low),
                (split.pictures.high, self.scale, high),
            ):
                rows = slice(s * top, s * (top + self.patch))
                columns = slice(s * left, s * (left + self.patch))
                found.append(_turned(pictures[number][rows, columns], turn * self.turned))
        return self._named(low, high, torch.empty(count, 0), torch.empty(count, 0))

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        """A tile: those of a split are not all of one shape, so a batch has one.

        Returns:
            As `train`, with [1, 3, H, W] and [1, 3, sH, sW].
        """
        assert size == 1
        assert 0 <= batch < len(self.splits[split])
        here = self.splits[split]
        tile = here.tiles[batch]
        s, (height, width) = self.scale, here.pictures.low[tile.picture].shape[:2]
        sides = ((tile.rows, height), (tile.columns, width))
        low, high = (
            pictures[tile.picture][
                scale * tile.rows.start : scale * tile.rows.stop,
                scale * tile.columns.start : scale * tile.columns.stop,
            ]
            for pictures, scale in ((here.pictures.low, 1), (here.pictures.high, s))
        )
        counted = [
            _counted(span, side, s, border) for border in (s, s + RADIUS) for span, side in sides
        ]
        numbers = [tile.picture, *(number for bounds in counted for number in bounds)]
        first = batch == 0 or here.tiles[batch - 1].picture != tile.picture
        assert here.pictures.quality is not None
        quality = here.pictures.quality[tile.picture] if first else (0.0, 0.0)
        return self._named([low], [high], torch.tensor([numbers]), torch.tensor([quality]))

    def _named(
        self, low: list[Bytes], high: list[Bytes], tile: Tensor, bicubic: Tensor
    ) -> dict[str, Tensor]:
        return {
            IMAGE: as_images(low, self.device),
            TARGET: as_images(high, self.device),
            TILE: to_device(tile.to(torch.int64), self.device),
            BICUBIC: to_device(bicubic.to(torch.float64), self.device),
        }


def as_images(pictures: Sequence[Bytes], device: torch.device) -> Tensor:
    """Bytes [H, W, 3] to float32 [B, 3, H, W] in [0, 1] on a device."""
    stacked = to_device(torch.from_numpy(np.stack(pictures)), device)
    return stacked.permute(0, 3, 1, 2).contiguous().float().div_(255)


def _turned(patch: Bytes, turn: int) -> Bytes:
    """One of the eight ways to lay a square down: 0 is as it is."""
    patch = np.rot90(patch, turn % 4)
    return patch[:, ::-1] if turn >= 4 else patch


def _counted(span: Span, side: int, scale: int, border: int) -> tuple[int, int]:
    """Which pixels of the large tile count, none of them within `border` of the picture's edge."""
    first = max(scale * span.first, border)
    behind = min(scale * span.behind, scale * side - border)
    return first - scale * span.start, behind - scale * span.start
