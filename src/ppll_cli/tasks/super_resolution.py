"""Super-resolution: computes a picture from a smaller version of it.

Legend: B batch, C channels, s scale, H height, W width (pixels of the small picture).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.tasks.details import Details
from ppll_cli.tasks.picture_heads import ToPictures
from ppll_cli.tasks.picture_quality import RADIUS, eight_bits, luma, psnr, ssim_map
from ppll_cli.tasks.task import Task, only_for

TARGET = "target"
"""Name of a batch's large pictures, float32 [B, 3, sH, sW] in [0, 1]."""

TILE = "tile"
"""Name of the tensor that describes tiles, int64 [B, 9]. In evaluation, each sample is a tile of a
picture.

A row has: the index of the tile's picture; four bounds of the pixels that PSNR uses (first row, row
after the last, first column, column after the last); and four such bounds for SSIM. Bounds are in
pixels of the large picture, relative to the tile's corner. In training the shape is [B, 0].
"""

BICUBIC = "bicubic"
"""Name of the tensor with PSNR and SSIM of bicubic enlargement, float64 [B, 2].

The first tile of a picture has the whole picture's values; its other tiles have zeros. In
training the shape is [B, 0].
"""

AUTHORS_BORDER = 6
"""EDSR's authors leave out a border of `scale` plus this number of pixels for DIV2K."""

_COLUMNS = 9
"""Number of columns in a tile's row of measurements. The columns are: the index of the picture; for
the luma, the sum of squared errors and the number of pixels; for SSIM, its sum and the number of
pixels; for RGB, the sum of squared errors and the number of values; and the two values of
`BICUBIC`.
"""


@dataclass(frozen=True)
class SuperResolution:
    """Super-resolution: predictions are pictures, float [B, 3, sH, sW]; the loss is L1.

    The values of a picture are from 0 (black) to 1 (white). Predictions may exceed this range: the
    scores clamp them, but the loss does not.

    The metric is PSNR, measured on the luma of each whole picture without a border of `scale`
    pixels, and averaged over pictures. Other scores are SSIM, also on luma, and the PSNR and SSIM
    of bicubic enlargement. `rgb_psnr` is the PSNR of RGB without a border of `scale` + 6 pixels, as
    EDSR's authors report it for DIV2K. In training, PSNR is computed from the mean squared error
    over whole patches.

    Attributes:
        scale: Factor by which height and width grow.
        patch: Height and width of the small pictures in training, in pixels.
        mean: Mean of the pixels of each channel, in [0, 1].
        overlap: Smallest distance between evaluated pixels and their tile's edges, in pixels of the
            small picture. It does not apply at the picture's border.
        reference: Name of the enlargement method with which the model is compared.
    """

    scale: int
    patch: int
    mean: tuple[float, ...]
    overlap: int
    metric: str = "psnr"
    reference: str = "bicubic"

    @property
    def targets(self) -> Mapping[str, ValueSpec]:
        """Shape (without the batch dimension) and dtype of each training target, by name."""
        return self.tile_targets(self.patch, self.patch, tile=0, bicubic=0)

    def tile_targets(
        self, height: int, width: int, tile: int = 9, bicubic: int = 2
    ) -> Mapping[str, ValueSpec]:
        """Return the shape (without the batch dimension) and dtype of each target, by name.

        Args:
            height: Height of the tile or patch of the small picture, in pixels.
            width: Width of the tile or patch of the small picture, in pixels.
            tile: Number of columns of the target `TILE`; 0 in training.
            bicubic: Number of columns of the target `BICUBIC`; 0 in training.
        """
        return {
            TARGET: ValueSpec((3, self.scale * height, self.scale * width), torch.float32),
            TILE: ValueSpec((tile,), torch.int64),
            BICUBIC: ValueSpec((bicubic,), torch.float64),
        }

    def loss(self, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return the mean absolute difference, a scalar, in float32 also under autocast."""
        return F.l1_loss(prediction.float(), values[TARGET])

    def measure(self, prediction: Tensor, values: Mapping[str, Tensor], training: bool) -> Tensor:
        """Return for each tile the sums from which `score` computes PSNR and SSIM, float64 [B, 9].

        In training, return one row for the whole batch, [1, 9]. It has only the sums for the luma's
        PSNR, and zeros elsewhere.
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
        in_rgb = _inside(_rgb_bounds(tile), errors)
        rgb_errors = (eight_bits(prediction) - eight_bits(values[TARGET])).double().square()
        sums = [errors * counted, counted, similar * compared, compared]
        sums += [rgb_errors.sum(dim=1) * in_rgb, 3 * in_rgb]
        rows = torch.stack([each.sum(dim=(1, 2)) for each in sums], dim=1)
        return torch.cat((tile[:, :1].double(), rows, values[BICUBIC]), dim=1)

    def score(self, rows: Tensor) -> Mapping[str, float]:
        """Return the mean PSNR (dB) and SSIM of the model and of bicubic enlargement.

        There is also `rgb_psnr`, the mean PSNR of the model in RGB. For training batches, the only
        score is the PSNR of the model.
        """
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
        """Return PSNR and SSIM of the model and of bicubic enlargement, for each picture."""
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
        """Return a small network that makes pictures from maps of this shape.

        It is a convolution to 3 * scale^2 channels, a pixel shuffle and `ToPictures`.

        Raises:
            ConfigError: The shape is not that of a map, [C, H, W].
        """
        check_map("local", "greedy", shape)
        convolution = nn.Conv2d(shape[0], 3 * self.scale**2, 3, padding=1)
        return nn.Sequential(convolution, nn.PixelShuffle(self.scale), ToPictures(self.mean))


def _by_picture(rows: Tensor) -> dict[int, list[float]]:
    numbers = sorted(set(rows[:, 0].tolist()))
    # Replicas and a resume change the order of the rows. The order has no effect on `fsum`.
    return {int(n): [*map(fsum, rows[rows[:, 0] == n, 1:].T.tolist())] for n in numbers}


def _rgb_bounds(tile: Tensor) -> Tensor:
    bounds, narrower = tile[:, 1:5], tile[:, 5:9]
    # SSIM's bounds leave out `scale` + 5 pixels at the picture's border, and `rgb_psnr` leaves out
    # one more. Bounds for PSNR and SSIM differ only at the picture's border.
    inwards = torch.tensor([1, -1, 1, -1], device=tile.device)
    assert RADIUS + 1 == AUTHORS_BORDER
    return narrower + inwards * (bounds != narrower)


def _inside(bounds: Tensor, like: Tensor) -> Tensor:
    rows, columns = (torch.arange(size, device=like.device) for size in like.shape[1:])
    top, bottom, left, right = (bounds[:, number, None] for number in range(4))
    within_rows = (rows >= top) & (rows < bottom)
    within_columns = (columns >= left) & (columns < right)
    return (within_rows[:, :, None] & within_columns[:, None, :]).double()


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else float("nan")


def check_map(key: str, value: str, shape: tuple[int, ...]) -> None:
    """Check that features are maps. In the error, `key` and `value` name the setting at fault.

    Raises:
        ConfigError: The shape (without the batch dimension) is not that of a map, [C, H, W].
    """
    if len(shape) != 3:
        problem = f"makes pictures from maps [C, H, W], but a module ends in {list(shape)}"
        raise ConfigError(
            key, value, problem, "use a model whose modules end in maps, such as edsr"
        )


def super_resolution_of(task: Task, name: str) -> SuperResolution:
    """Return the task, which must be super-resolution if the user chose `model=name`.

    Raises:
        ConfigError: It is another task.
    """
    data = "of pictures: data=photos or data=div2k"
    return only_for(SuperResolution, task, "model", name, "super-resolution", data)
