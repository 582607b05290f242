"""Residual networks: the narrow networks for CIFAR, and torchvision's ResNets.

Legend: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ppll_cli.config.targets import check_options
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import MOST_LAYERS, Fraction
from ppll_cli.models.drop_path import drop_path_of, rates
from ppll_cli.models.partitions import named_partitions
from ppll_cli.models.unit import IMAGE, ImageSpec, Unit, check_images
from ppll_cli.tasks.classification import ClassifierHead, classes_of
from ppll_cli.tasks.task import Shape, Task

StemKind = Literal["cifar", "imagenet"]
FamilyDepth = Literal[18, 34, 50, 101, 152]


class Stem(nn.Module):
    """The first convolution, with BatchNorm and ReLU.

    The kind `cifar` is a 3x3 convolution, which keeps H and W. `imagenet` is a 7x7 convolution and
    a max-pool, which divide H and W by 4.
    """

    def __init__(self, channels: int, width: int, kind: StemKind) -> None:
        super().__init__()
        large = kind == "imagenet"
        self.conv1 = _convolution(channels, width, 7 if large else 3, 2 if large else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else None

    def forward(self, image: Tensor) -> Tensor:
        """Convert an image [B, C, H, W] to a map [B, width, H', W'].

        H' and W' are H and W (`cifar`), or H / 4 and W / 4, rounded up (`imagenet`).
        """
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        if self.maxpool is not None:
            x = self.maxpool(x)
        return x


class BasicUnit(nn.Module):
    """Two 3x3 convolutions with a skip around them; `rate` is the rate of `DropPath`."""

    expansion: ClassVar[int] = 1

    def __init__(self, channels: int, width: int, stride: int, rate: float = 0.0) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.drop_path = drop_path_of(rate)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Convert a map [B, channels, H, W] to a map [B, width, H / stride, W / stride].

        H / stride and W / stride are rounded up.
        """
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return _join(self.drop_path(self.bn2(self.conv2(y))), x, self.downsample)


class BottleneckUnit(nn.Module):
    """A strided 3x3 convolution between two 1x1 convolutions, with a skip around them.

    `width` is the number of channels between the convolutions; the output has four times as many.
    `rate` is the rate of `DropPath`.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, channels: int, width: int, stride: int, rate: float = 0.0) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.drop_path = drop_path_of(rate)
        self.downsample = _shortcut(channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Convert a map [B, channels, H, W] to a map [B, 4 width, H / stride, W / stride].

        H / stride and W / stride are rounded up.
        """
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return _join(self.drop_path(self.bn3(self.conv3(y))), x, self.downsample)


class Head(ClassifierHead):
    """A mean over all positions and a Linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Convert a map [B, C, H, W] to vectors [B, C]."""
        return x.mean(dim=(2, 3))


def _convolution(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _shortcut(channels: int, width: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(_convolution(channels, width, 1, stride), nn.BatchNorm2d(width))


def _join(y: Tensor, x: Tensor, shortcut: nn.Module | None) -> Tensor:
    y += x if shortcut is None else shortcut(x)
    return F.relu(y, inplace=True)


UnitType = type[BasicUnit] | type[BottleneckUnit]


def _adapted(
    kind: UnitType, width: int, rate: float, input_shape: Shape, output_shape: Shape
) -> nn.Module:
    stride = 2 if input_shape[1] > output_shape[1] else 1
    return kind(channels=input_shape[0], width=width, stride=stride, rate=rate)


def _trunk(
    stem: partial[Stem], kind: UnitType, counts: Sequence[int], first_width: int, drop_path: float
) -> list[Unit]:
    probabilities = iter(rates(drop_path, sum(counts)))
    units = [Unit("stem", stem, reads=(IMAGE,))]
    channels = stem.keywords["width"]
    for group, count in enumerate(counts):
        width = first_width * 2**group
        for index in range(count):
            stride = 2 if group > 0 and index == 0 else 1
            rate = next(probabilities)
            build = partial(kind, channels=channels, width=width, stride=stride, rate=rate)
            adapt = partial(_adapted, kind, width, rate)
            units.append(Unit(f"layer{group + 1}.{index}", build, adapt=adapt))
            channels = width * kind.expansion
    return units


def _head(channels: int, classes: int) -> Unit:
    return Unit("head", partial(Head, channels=channels, classes=classes), writes=("prediction",))


@dataclass(frozen=True, kw_only=True)
class CifarResNet:
    """The ResNet for small images: three groups of n basic units, with 16, 32 and 64 channels.

    The units are `stem`, `layer1.0` ... `layer3.{n-1}` and `head`. If a unit changes the shape, its
    skip is a 1x1 convolution and a BatchNorm, as in InfoPro's code
    (github.com/blackfeather-wang/InfoPro-Pytorch). The original network (arXiv 1512.03385, section
    4.2) pads with zeros instead, so it has slightly fewer parameters.

    Attributes:
        depth: Number of layers, 6n + 2: usually 32 or 110.
        drop_path: Probability that the last residual unit's branch is zeroed for a sample
            (stochastic depth, arXiv 1603.09382). From the first to the last residual unit, the
            probability grows linearly from 0 to this value.
    """

    depth: Annotated[int, Field(le=MOST_LAYERS)]
    drop_path: Fraction = 0.0

    def __post_init__(self) -> None:
        check_options("model", self)
        if self.depth < 8 or self.depth % 6 != 2:
            below = max(8, self.depth - (self.depth - 2) % 6)
            raise ConfigError(
                "model.depth", self.depth, "is not 6n + 2", f"nearest: {below}, {below + 6}"
            )

    @property
    def partitions(self) -> Mapping[str, Sequence[str]]:
        """For each named partition, the first unit of each module except module 0."""
        return named_partitions(self.depth)

    def units(self, image: ImageSpec, task: Task) -> Sequence[Unit]:
        """Return the units; all except `stem` read the previous unit's map `x` [B, C, H, W].

        Raises:
            ConfigError: The task has no classes, or the data have no images or too small images.
        """
        name = f"resnet{self.depth}"
        classes = classes_of(task, name)
        check_images(image, name)
        if min(image.height, image.width) < 4:
            raise _too_small("model", name, image, 4, "choose a data set with larger images")
        stem = partial(Stem, channels=image.channels, width=16, kind="cifar")
        counts = [(self.depth - 2) // 6] * 3
        return [*_trunk(stem, BasicUnit, counts, 16, self.drop_path), _head(64, classes)]


FAMILY: dict[FamilyDepth, tuple[UnitType, tuple[int, int, int, int]]] = {
    18: (BasicUnit, (2, 2, 2, 2)),
    34: (BasicUnit, (3, 4, 6, 3)),
    50: (BottleneckUnit, (3, 4, 6, 3)),
    101: (BottleneckUnit, (3, 4, 23, 3)),
    152: (BottleneckUnit, (3, 8, 36, 3)),
}
"""For each depth: the class of the residual units, and their number in each of the four groups."""


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """torchvision's ResNet: units `stem`, `layer1.0` ... `layer4.N` and `head`.

    The parameters of the residual units have torchvision's names.

    Attributes:
        depth: Number of layers.
        stem: `imagenet` divides H and W by 4 before the first residual unit; `cifar` keeps H and W.
        drop_path: Probability of stochastic depth in the last residual unit, as in `CifarResNet`.
    """

    depth: FamilyDepth
    stem: StemKind = "cifar"
    drop_path: Fraction = 0.0

    def __post_init__(self) -> None:
        check_options("model", self)

    def units(self, image: ImageSpec, task: Task) -> Sequence[Unit]:
        """Return the units; all except `stem` read the previous unit's map `x` [B, C, H, W].

        Raises:
            ConfigError: The task has no classes, or the data have no images or too small images.
        """
        name = f"resnet{self.depth}"
        classes = classes_of(task, name)
        check_images(image, name)
        kind, _ = FAMILY[self.depth]
        return [*self.trunk(image), _head(512 * kind.expansion, classes)]

    def trunk(self, image: ImageSpec) -> list[Unit]:
        """Return the units without the head.

        Raises:
            ConfigError: The images are too small.
        """
        size = min(image.height, image.width)
        if self.stem == "imagenet" and size < 32:
            remedy = "use model.stem=cifar, which needs only 8 x 8"
            raise _too_small("model.stem", self.stem, image, 32, remedy)
        if size < 8:
            remedy = "choose a data set with larger images"
            raise _too_small("model", f"resnet{self.depth}", image, 8, remedy)
        kind, counts = FAMILY[self.depth]
        stem = partial(Stem, channels=image.channels, width=64, kind=self.stem)
        return _trunk(stem, kind, counts, 64, self.drop_path)


def _too_small(key: str, value: str, image: ImageSpec, least: int, remedy: str) -> ConfigError:
    problem = (
        f"needs images of at least {least} x {least} pixels, "
        f"but these have {image.height} x {image.width}"
    )
    return ConfigError(key, value, problem, remedy)
