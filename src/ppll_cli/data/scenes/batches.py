"""Makes batches of pictures with boxes: resized, mirrored, padded to one size per batch.

Batch b of epoch e depends only on (seed, e, b). Legend: B batch, H height, W width (pixels of the
batch's images).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.data.augment import normalise, per_channel
from ppll_cli.data.batches import SplitBatches, generator_of
from ppll_cli.data.files import Files
from ppll_cli.data.pictures.cache import Bytes
from ppll_cli.data.scenes.index import Scene, Scenes
from ppll_cli.data.staging import to_device
from ppll_cli.models.unit import IMAGE
from ppll_cli.tasks.detection import BOXES, COUNT, FRAME, IGNORED, LABELS, NUMBER

if TYPE_CHECKING:  # not at run time: the data set's file imports this file
    from ppll_cli.data.scenes.dataset import DetectionDataset


class Sized(NamedTuple):
    """A resized picture, uint8 [height, width, 3], and its objects, as in `Scene`."""

    pixels: Bytes
    boxes: NDArray[np.float32]  # left, top, right, bottom in pixels of the resized picture
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    frame: tuple[float, float, float, float]  # height, width, and the factors that scaled them


class SceneBatches(SplitBatches[Files, Scenes]):
    """Makes batches for object detection. Pictures are decoded anew for each batch.

    If a picture cannot be decoded, or its size differs from its annotation, a ConfigError is raised
    when a batch is made.
    """

    dataset: "DetectionDataset"

    in_advance = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._targets = self.dataset.task.targets
        self._mean = per_channel(self.dataset.mean, self.device)
        self._std = per_channel(self.dataset.std, self.device)

    def train(self, epoch: int, batch: int) -> dict[str, Tensor]:
        """Make a training batch, in the random order of the epoch, without ignored boxes.

        Returns:
            Images float32 [B, 3, H, W] and the targets of `ppll_cli.tasks.detection`, by name.
        """
        assert 0 <= batch < self.steps_per_epoch
        scenes, numbers = self.splits["train"], self.chosen(epoch, batch)
        draws = generator_of(seeding.augmentation(self.seed, epoch, batch))
        mirrored = torch.randint(2, (len(numbers),), generator=draws).tolist()
        sized = []
        for number, turned in zip(numbers.tolist(), mirrored, strict=True):
            picture = self._sized(_without_ignored(scenes[number]))
            sized.append(_mirrored(picture) if turned and self.dataset.flip else picture)
        return self._named(sized, numbers)

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        """Make an evaluation batch of pictures in their order, not mirrored, with all boxes.

        Returns:
            Images float32 [B, 3, H, W] and the targets of `ppll_cli.tasks.detection`, by name.
        """
        scenes = self.splits[split]
        numbers = torch.arange(batch * size, min((batch + 1) * size, len(scenes)))
        assert len(numbers)
        return self._named([self._sized(scenes[number]) for number in numbers.tolist()], numbers)

    def _sized(self, scene: Scene) -> Sized:
        picture = scene.picture
        height, width = self.dataset.fitted(picture.height, picture.width)
        ratios = height / picture.height, width / picture.width
        if (width, height) != picture.size:  # PIL's bilinear filter is antialiased
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        boxes = scene.boxes * np.array([ratios[1], ratios[0]] * 2, dtype=np.float32)
        frame = (height, width, *ratios)
        return Sized(np.asarray(picture), boxes, scene.labels, scene.ignored, frame)

    def _named(self, pictures: Sequence[Sized], numbers: Tensor) -> dict[str, Tensor]:
        targets = {
            name: torch.zeros(len(pictures), *spec.shape, dtype=spec.dtype)
            for name, spec in self._targets.items()
        }
        targets[BOXES][:] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        targets[NUMBER][:] = numbers
        for row, picture in enumerate(pictures):
            count = len(picture.labels)
            targets[COUNT][row] = count
            targets[BOXES][row, :count] = torch.from_numpy(picture.boxes)
            targets[LABELS][row, :count] = torch.from_numpy(picture.labels)
            targets[IGNORED][row, :count] = torch.from_numpy(picture.ignored)
            targets[FRAME][row] = torch.tensor(picture.frame)
        on_device = {name: to_device(target, self.device) for name, target in targets.items()}
        return {IMAGE: self._images([picture.pixels for picture in pictures]), **on_device}

    def _images(self, pictures: Sequence[Bytes]) -> Tensor:
        height, width = (
            self.dataset.padded(max(picture.shape[side] for picture in pictures)) for side in (0, 1)
        )
        canvas = np.zeros((len(pictures), height, width, 3), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            canvas[row, : picture.shape[0], : picture.shape[1]] = picture
        images = to_device(torch.from_numpy(canvas), self.device).permute(0, 3, 1, 2).contiguous()
        normal = normalise(images, self._mean, self._std)
        # Copy only sizes: copying a mask of the padding would add a third to the images' bytes.
        sizes = to_device(torch.tensor([picture.shape[:2] for picture in pictures]), self.device)
        below = torch.arange(height, device=self.device)[:, None] >= sizes[:, :1, None]
        right = torch.arange(width, device=self.device) >= sizes[:, 1:, None]
        return normal.masked_fill_((below | right)[:, None], 0)


def _without_ignored(scene: Scene) -> Scene:
    kept = ~scene.ignored
    return Scene(scene.pixels, scene.boxes[kept], scene.labels[kept], scene.ignored[kept])


def _mirrored(picture: Sized) -> Sized:
    width = np.float32(picture.pixels.shape[1])
    boxes = picture.boxes.copy()
    boxes[:, [0, 2]] = width - picture.boxes[:, [2, 0]]
    return picture._replace(pixels=picture.pixels[:, ::-1], boxes=boxes)
