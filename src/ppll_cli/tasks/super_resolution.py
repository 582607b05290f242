"""Super-resolution: a picture, given a smaller one of the same.

Legend: B batch, C channels, s scale, H height, W width (pixels of the small picture).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.tasks.details import Details
from ppll_cli.tasks.picture_heads import FusedPictureHead, PictureHead, ToPictures
from ppll_cli.tasks.picture_quality import RADIUS, eight_bits, luma, psnr, ssim_map
from ppll_cli.tasks.task import CopiedNetwork, Copies, Task, only_for

TARGET = "target"
"""The name under which a batch carries the large pictures, float [B, 3, sH, sW] in [0, 1]."""

TILE = "tile"
"""Of which picture an evaluation sample is a tile, and which of its pixels count, int64 [B, 9].

The picture's number; the first row behind which PSNR counts pixels, the row where it stops, the
same of columns; then these four for SSIM. Pixels are those of the large picture, counted from the
tile's corner. Training samples are no tiles: [B, 0].
"""

BICUBIC = "bicubic"
"""PSNR and SSIM of the whole picture enlarged bicubically, float64 [B, 2].

On the first tile of a picture; zeros on its others. Training: [B, 0].
"""

AUTHORS_BORDER = 6
"""Pixels that EDSR's authors leave out at the border of DIV2K's pictures, beside the scale."""

_COLUMNS = 9
"""Measured of a tile: its picture, squared error and pixels of the luma, SSIM and its pixels,
squared error and values of RGB, BICUBIC."""


@dataclass(frozen=True)
class SuperResolution:
    """Predictions are pictures [B, 3, sH, sW] in [0, 1]; the loss is L1, the metric PSNR.

    PSNR and SSIM are those of the luma, without a border of `scale` pixels, of each whole picture,
    and the mean over pictures is reported; those of bicubic enlargement stand beside, and PSNR as
    EDSR's authors have it for DIV2K (`rgb_psnr`): of RGB, without a border of `scale` + 6 pixels.
    In training, PSNR is that of the mean squared error over whole patches.

    Attributes:
        scale: By how much height and width grow.
        patch: Height and width of the small pictures of training batches.
        mean: Of the pixels, one a channel.
        overlap: Pixels of small pictures that evaluation tiles have beyond those that count.
        metric: Its name.
        reference: The enlargement that the model is compared with.
        long_skips: A feature bank is by default the long skip of the model's head.
    """

    long_skips: ClassVar[bool] = True

    scale: int
    patch: int
    mean: tuple[float, ...]
    overlap: int
    metric: str = "psnr"
    reference: str = "bicubic"

    @property
    def targets(self) -> Mapping[str, ValueSpec]:
        """Of training batches."""
        return self._targets(self.patch, self.patch, tiles=False)

    def tile_targets(self, height: int, width: int) -> Mapping[str, ValueSpec]:
        """Of evaluation batches, given the largest small pictures."""
        return self._targets(height, width, tiles=True)

    def _targets(self, height: int, width: int, tiles: bool) -> Mapping[str, ValueSpec]:
        return {
            TARGET: ValueSpec((3, self.scale * height, self.scale * width), torch.float32),
            TILE: ValueSpec((9 if tiles else 0,), torch.int64),
            BICUBIC: ValueSpec((2 if tiles else 0,), torch.float64),
        }

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Mean absolute difference, in float32 also under autocast."""
        return F.l1_loss(prediction.float(), values[TARGET])

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """Of each tile a row of `_COLUMNS`.

        Training patches count as one tile of one picture, with the luma's error alone.
        """
        made, wanted = luma(prediction), luma(values[TARGET])
        errors = (made - wanted).double().square()
        if training:
            pixels = torch.full((), errors.numel(), dtype=torch.float64, device=errors.device)
            row = torch.stack((torch.zeros_like(pixels), errors.sum(), pixels))
            return F.pad(row, (0, _COLUMNS - 3))[None]
        tile = values[TILE]
        similar = ssim_map(made, wanted)
        counted = _inside(tile[:, 1:5], errors)
        compared = _inside(tile[:, 5:9] - RADIUS, similar)
        shaved = _inside(_shaved(tile), errors)
        rgb_errors = (eight_bits(prediction) - eight_bits(values[TARGET])).double().square()
        sums = [errors * counted, counted, similar * compared, compared]
        sums += [rgb_errors.sum(dim=1) * shaved, 3 * shaved]
        rows = torch.stack([each.sum(dim=(1, 2)) for each in sums], dim=1)
        return torch.cat((tile[:, :1].double(), rows, values[BICUBIC]), dim=1)

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """PSNR (dB), SSIM, PSNR of RGB, and those of bicubic enlargement: means over pictures."""
        sums = [*_by_picture(rows).values()]
        found = {self.metric: _mean([psnr(each[0], each[1]) for each in sums])}
        if all(each[3] for each in sums):
            found["ssim"] = _mean([each[2] / each[3] for each in sums])
            found["bicubic_psnr"] = _mean([each[6] for each in sums])
            found["bicubic_ssim"] = _mean([each[7] for each in sums])
        if all(each[5] for each in sums):
            found["rgb_psnr"] = _mean([psnr(each[4], each[5]) for each in sums])
        return found

    def details(self, rows: Tensor, names: Sequence[str]) -> Details:
        """PSNR and SSIM of each picture, and those of bicubic enlargement."""
        entries = []
        for number, each in _by_picture(rows).items():
            found = {
                self.metric: psnr(each[0], each[1]),
                "ssim": each[2] / each[3] if each[3] else None,
            }
            bicubic = {"bicubic_psnr": each[6], "bicubic_ssim": each[7]}
            name = names[number] if number < len(names) else str(number)
            entries.append({"picture": name, "pixels": int(each[1]), **found, **bicubic})
        return Details("picture", entries)

    def smallest_head(self, shape: tuple[int, ...]) -> nn.Module:
        """A convolution to as many channels as a pixel has parts, and a pixel shuffle."""
        _check_map("local", "greedy", shape)
        convolution = nn.Conv2d(shape[0], 3 * self.scale**2, 3, padding=1)
        return nn.Sequential(convolution, nn.PixelShuffle(self.scale), ToPictures(self.mean))

    def banked(self, shape: tuple[int, ...]) -> nn.Module:
        """The map as it is: a picture's details are nowhere else."""
        _check_map("fba", "on", shape)
        return nn.Identity()

    def bank_network(
        self, copies: Copies, banked: Sequence[tuple[int, ...]], bank: FeatureBank
    ) -> nn.Module:
        """Where there is a bank, the head has a `FusedPictureHead` around it."""
        head = copies.head
        if not banked:
            return CopiedNetwork(copies.units, head)
        if not isinstance(head, PictureHead):
            raise ConfigError(
                "fba",
                "on",
                f"the model's head, {type(head).__name__}, does not say where skips are added",
                "derive it from ppll_cli.tasks.super_resolution.PictureHead, or use fba=off",
            )
        channels = [shape[0] for shape in banked]
        fused = FusedPictureHead(head, channels, bank.joined, bank.shared_head)
        return CopiedNetwork(copies.units, fused)


def _by_picture(rows: Tensor) -> dict[int, list[float]]:
    """The sums over the tiles of each picture, by its number."""
    numbers = sorted(set(rows[:, 0].tolist()))
    return {int(n): rows[rows[:, 0] == n, 1:].sum(dim=0).tolist() for n in numbers}


def _shaved(tile: Tensor) -> Tensor:
    """Bounds of the pixels that count for `rgb_psnr`: as `TILE`'s, int64 [B, 4].

    Its border is one pixel wider than that of SSIM. The bounds of PSNR and SSIM differ where they
    are the picture's border and not a cut between tiles.
    """
    bounds, narrower = tile[:, 1:5], tile[:, 5:9]
    inwards = torch.tensor([1, -1, 1, -1], device=tile.device)
    assert RADIUS + 1 == AUTHORS_BORDER
    return narrower + inwards * (bounds != narrower)


def _inside(bounds: Tensor, like: Tensor) -> Tensor:
    """1 within rows and columns, 0 elsewhere.

    Args:
        bounds: First row, row behind the last, the same of columns, int64 [B, 4].
        like: [B, H, W].

    Returns:
        float64 [B, H, W].
    """
    rows, columns = (torch.arange(size, device=like.device) for size in like.shape[1:])
    top, bottom, left, right = (bounds[:, number, None] for number in range(4))
    within_rows = (rows >= top) & (rows < bottom)
    within_columns = (columns >= left) & (columns < right)
    return (within_rows[:, :, None] & within_columns[:, None, :]).double()


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _check_map(key: str, value: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        problem = f"makes pictures from maps [C, H, W], and a module ends in {list(shape)}"
        raise ConfigError(key, value, problem, "use a model whose modules end in maps, as edsr")


def super_resolution_of(task: Task, name: str) -> SuperResolution:
    """The task, for `model=name`.

    Raises:
        ConfigError: It is another one.
    """
    data = "of pictures: data=photos or data=div2k"
    return only_for(SuperResolution, task, "model", name, "super-resolution", data)
