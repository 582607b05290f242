"""The base class of all data sets for classification: settings and preprocessing.

Legend: C channels, H height, W width (pixels).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import FiniteFloat

from ppll_cli.data.files import Files
from ppll_cli.data.source import EvaluationForm, Predict, Prediction, Tensors
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.images import IMAGE, ImageSpec
from ppll_cli.leaves.limits import Natural, NotNegative, Positive

if TYPE_CHECKING:  # not at run time: wrong options are refused before torch is imported
    import torch
    from PIL.Image import Image

    from ppll_cli.tasks.classification import Classification

_MODES = {1: "L", 3: "RGB"}  # Pillow's mode of a picture, by its number of channels


@dataclass(frozen=True, kw_only=True)
class Classified(Files, ABC):
    """A data set for classification.

    Attributes:
        mean: Mean of the pixels, which are in [0, 1]: one value, or one value per channel.
        std: Standard deviation of these pixels: one value, or one value per channel.
        pad: Largest shift of a training image by the random crop, in pixels; 0 for no crop.
        pad_mode: How images are padded for the crop: `zeros` or `reflect` (mirrored pixels).
        flip: Whether each training image is mirrored from left to right with probability 1/2.
        augment: `basic` crops (`pad`) and flips (`flip`); `randaugment` also applies RandAugment
            after the crop and flip; `none` ignores `pad` and `flip`.
        mixup: Alpha of Mixup, which blends the images of a training batch in pairs; 0 for no Mixup.
        cutmix: Alpha of CutMix, which replaces a box of each image by the same box of another
            image; 0 for no CutMix.
    """

    mean: list[FiniteFloat]
    std: list[Positive]
    pad: Natural
    pad_mode: Literal["zeros", "reflect"]
    flip: bool
    # These keys have defaults, so that older runs without them can be resumed.
    augment: Literal["basic", "randaugment", "none"] = "basic"
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0

    @property
    @abstractmethod
    def class_count(self) -> int:
        """Number of classes; labels are from 0 to `class_count` - 1."""

    @property
    @abstractmethod
    def channel_count(self) -> int:
        """Number of channels of an image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels; by default the labels as text."""
        return tuple(map(str, range(self.class_count)))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std, self.channel_count)

    @property
    def mixed(self) -> dict[str, float]:
        """The values of `data.mixup` and `data.cutmix` by key, without zeros."""
        values = {"data.mixup": self.mixup, "data.cutmix": self.cutmix}
        return {key: alpha for key, alpha in values.items() if alpha}

    @property
    def task(self) -> "Classification":
        """Classification into the classes of this data set."""
        from ppll_cli.tasks.classification import Classification

        return Classification(self.class_count)

    def evaluation_form(self, splits: Any) -> EvaluationForm | None:
        """Return None: evaluation batches have the shapes of training batches."""
        return None

    def check_pad(self, side: int) -> None:
        """Check that `pad` is less than `side`, the images' shorter side in pixels.

        Raises:
            ConfigError: `pad` is `side` or more.
        """
        if self.pad >= side:
            problem = f"must be less than {side}, the images' side in pixels"
            raise ConfigError("data.pad", self.pad, problem)

    def inputs(self, picture: "Image", image: ImageSpec, device: "torch.device") -> Tensors:
        """Fit a user's picture to the model's size and normalise it.

        The result has the image, float32 [1, C, H, W] on `device`, under the name `IMAGE`. A
        picture of another size is resized (bilinear, antialiased) until it just covers the
        model's image, and cropped to its middle.

        Raises:
            ConfigError: The model's images have neither 1 nor 3 channels.
        """
        import torch
        from PIL import ImageOps
        from PIL.Image import Resampling

        from ppll_cli.data.augment import normalise, per_channel

        mode = _MODES.get(image.channels)
        if mode is None:
            problem = f"the model takes images with {image.channels} channels"
            raise ConfigError("picture", picture.size, problem, "pass tensors to the model itself")
        made, size = picture.convert(mode), (image.width, image.height)
        if made.size != size:
            made = ImageOps.fit(made, size, Resampling.BILINEAR)
        pixels = np.array(made).reshape(1, image.height, image.width, image.channels)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
        mean, std = per_channel(self.mean, device), per_channel(self.std, device)
        return {IMAGE: normalise(images, mean, std)}

    def predicted(self, predict: Predict, picture: "Image", inputs: Tensors) -> Prediction:
        """Return the most probable class, and the probabilities of all classes in falling order."""
        found = self.task.probabilities(predict(inputs[IMAGE]))[0].tolist()
        names = self.class_names
        sure = [{"label": n, "class": names[n], "probability": p} for n, p in enumerate(found)]
        sure.sort(key=lambda each: -each["probability"])
        return Prediction({**sure[0], "probabilities": sure})


def check_normalisation(mean: list[float], std: list[float], channels: int) -> None:
    """Check that `data.mean` and `data.std` each have one value, or one value per channel.

    Raises:
        ConfigError: One of them has another number of values.
    """
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            problem = f"has {len(values)} values, but the images have {channels} channels"
            raise ConfigError(f"data.{key}", values, problem, "give one value, or one per channel")
