"""What all data sets for classification share: settings of their batches, and preprocessing.

Legend: N samples, C channels, H height, W width (pixels).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Literal

from ppll_cli.data.files import Files, check_at_least
from ppll_cli.errors import ConfigError

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong option is refused without it
    import torch
    from PIL import Image
    from torch import Tensor

    from ppll_cli.data.batches import Form
    from ppll_cli.data.source import EvaluationForm, Prediction
    from ppll_cli.models.unit import ImageSpec
    from ppll_cli.tasks.classification import Classification

PAD_MODES = ("zeros", "reflect")
AUGMENTATIONS = ("basic", "randaugment", "none")
MIXED_BY = ("mixup", "cutmix")


@dataclass(frozen=True, kw_only=True)
class Classified(Files, ABC):
    """Settings and preprocessing that all data sets for classification share.

    Attributes:
        mean: Mean of the pixels in [0, 1]: one value, or one a channel.
        std: Standard deviation of the pixels in [0, 1]: one value, or one a channel.
        pad: How far a training image is shifted at most by the random crop, in pixels; 0 is off.
        pad_mode: What is behind an image's border, black or its mirror image.
        flip: Half of the training images are mirrored from left to right.
        augment: `basic`: random crop and flip, by `pad` and `flip`; `randaugment`: these, then
            RandAugment; `none`: training images stay as they are.
        mixup: Alpha of Mixup, which mixes the images of a training batch in pairs; 0 is off.
        cutmix: Alpha of CutMix, which does so by boxes; 0 is off.
    """

    mean: list[float]
    std: list[float]
    pad: int
    pad_mode: Literal["zeros", "reflect"]
    flip: bool
    # Runs from before these keys can be resumed, so they have defaults.
    augment: Literal["basic", "randaugment", "none"] = "basic"
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    @abstractmethod
    def class_count(self) -> int:
        """How many classes there are; labels are 0 to one less."""

    @property
    @abstractmethod
    def channel_count(self) -> int:
        """How many channels an image has."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by their labels; the labels' numbers where nothing better is known.

        A subclass that knows names has them here.
        """
        return tuple(map(str, range(self.class_count)))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("pad", self.pad, 0)
        for key, known in (("pad_mode", PAD_MODES), ("augment", AUGMENTATIONS)):
            if (value := getattr(self, key)) not in known:
                raise ConfigError(
                    f"data.{key}", value, "is unknown", f"choose {' or '.join(known)}"
                )
        check_normalisation(self.mean, self.std, self.channel_count)
        for key in MIXED_BY:
            if not 0 <= (alpha := getattr(self, key)) < inf:
                problem = "must be finite and not negative"
                raise ConfigError(f"data.{key}", alpha, problem, "give 0 for none of it")

    @property
    def mixed(self) -> dict[str, float]:
        """The keys that have training images mixed in pairs, with their values."""
        values = {f"data.{key}": getattr(self, key) for key in MIXED_BY}
        return {key: alpha for key, alpha in values.items() if alpha}

    @property
    def task(self) -> "Classification":
        """What is learnt from this data set."""
        from ppll_cli.tasks.classification import Classification

        return Classification(self.class_count)

    def evaluation_form(self, splits: Any) -> "EvaluationForm | None":
        """None: evaluation batches are like training batches."""
        return None

    def check_pad(self, side: int) -> None:
        """Refuses a shift that would leave nothing of an image.

        Args:
            side: The image's shorter side, in pixels.

        Raises:
            ConfigError: The shift is too large.
        """
        if self.pad >= side:
            raise ConfigError("data.pad", self.pad, f"images measure {side} pixels", "give less")

    def form(self, batch_size: int, seed: int, device: "torch.device") -> "Form":
        """How a run's batches are made of images, wherever these come from."""
        from ppll_cli.data.augment import Augmentation
        from ppll_cli.data.batches import Form
        from ppll_cli.data.mixing import Mixing

        return Form(
            mean=self.mean,
            std=self.std,
            augmentation=Augmentation(self.augment, self.pad, self.pad_mode, self.flip),
            mixing=Mixing(self.mixup, self.cutmix),
            drop_last=self.drop_last,
            batch_size=batch_size,
            seed=seed,
            device=device,
        )

    def inputs(
        self, picture: "Image.Image", image: "ImageSpec", device: "torch.device"
    ) -> "dict[str, Tensor]":
        """A picture of the user's as the model takes it: fitted to its size, and normalised."""
        from ppll_cli.data.augment import normalise, per_channel
        from ppll_cli.data.one_picture import fitted
        from ppll_cli.models.unit import IMAGE

        mean, std = per_channel(self.mean, device), per_channel(self.std, device)
        return {IMAGE: normalise(fitted(picture, image).to(device), mean, std)}

    def predicted(
        self,
        predict: "Callable[[Tensor], Tensor]",
        picture: "Image.Image",
        inputs: "dict[str, Tensor]",
    ) -> "Prediction":
        """The classes that the model finds in a picture of the user's, with their probabilities."""
        from ppll_cli.data.one_picture import labelled
        from ppll_cli.models.unit import IMAGE

        found = self.task.probabilities(predict(inputs[IMAGE]))[0]
        return labelled(found.tolist(), self.class_names)


def check_normalisation(mean: list[float], std: list[float], channels: int) -> None:
    """Checks `data.mean` and `data.std`: one value, or one a channel.

    Raises:
        ConfigError: One cannot be.
    """
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"data.{key}",
                values,
                f"has {len(values)} values, the images have {channels} channels",
                "give one value, or one a channel",
            )
        if not all(isfinite(value) for value in values):
            raise ConfigError(f"data.{key}", values, "is not finite", "give finite numbers")
    if min(std) <= 0:
        raise ConfigError("data.std", std, "is not positive", "give values above 0")
