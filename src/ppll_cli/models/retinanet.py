"""RetinaNet: a residual network with a feature pyramid for object detection (arXiv 1708.02002)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import nn

from ppll_cli.config.targets import check_options
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Fraction, Size
from ppll_cli.models.resnet import FAMILY, FamilyDepth, ResNet
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.detection import Detection, detection_of
from ppll_cli.tasks.pyramid import HeadStyle, PyramidHead
from ppll_cli.tasks.task import Shape, Task

LEVELS = {8: "c3", 16: "c4", 32: "c5"}
"""For each stride, the name of the ResNet's last map with this stride. The unit `head` reads it."""

Norm = Literal["none", "group"]
GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class RetinaNet:
    """RetinaNet on torchvision's ResNet, with units `stem`, `layer1.0` ... `layer4.N` and `head`.

    `head` has the pyramid and the branches for classes and boxes. It reads the outputs of the last
    units of `layer2`, `layer3` and `layer4`. BatchNorm is trained, not frozen.

    Attributes:
        depth: Depth of the ResNet.
        width: Number of channels of the pyramid and of the branches.
        norm: The norms between the branches' convolutions: `none`, as in the paper, or `group` for
            GroupNorm with 32 groups, as in torchvision's second version.
        drop_path: Probability of stochastic depth in the last residual unit. It is lower in earlier
            units (see `CifarResNet`).
    """

    depth: FamilyDepth = 18
    width: Size = 256
    norm: Norm = "none"
    drop_path: Fraction = 0.0

    def __post_init__(self) -> None:
        check_options("model", self)
        # The coarsest map may be a single pixel, and GroupNorm needs at least two values per group.
        if self.norm == "group" and (self.width % GROUPS or self.width == GROUPS):
            problem = f"cannot be divided into {GROUPS} groups of two or more channels"
            remedy = f"use {2 * GROUPS} or another multiple of {GROUPS}, or model.norm=none"
            raise ConfigError("model.width", self.width, problem, remedy)

    def units(self, image: ImageSpec, task: Task) -> Sequence[Unit]:
        """Return the units for images whose height and width are multiples of 32.

        Raises:
            ConfigError: The task is not detection, or the images are too small.
        """
        wanted = detection_of(task, "retinanet")
        kind, counts = FAMILY[self.depth]
        trunk = ResNet(depth=self.depth, stem="imagenet", drop_path=self.drop_path)
        units = trunk.trunk(image)
        ends = [sum(counts[:group]) for group in (2, 3, 4)]
        for end, name in zip(ends, LEVELS.values(), strict=True):
            units[end] = replace(units[end], writes=(name,))
            if end + 1 < len(units):
                units[end + 1] = replace(units[end + 1], reads=(name,))
        channels = {
            stride: 64 * 2**group * kind.expansion for group, stride in enumerate(LEVELS, start=1)
        }
        build = partial(self._head, wanted, channels)
        adapt = partial(self._alone, wanted)
        reads = tuple(reversed(LEVELS.values()))
        return [*units, Unit("head", build, reads, ("prediction",), adapt)]

    def _alone(self, task: Detection, input_shape: Shape, output_shape: Shape) -> nn.Module:
        # For `Unit.adapt`: this head reads one map instead of three.
        stride = task.stride("model", "retinanet", input_shape)
        return self._head(task, {stride: input_shape[0]})

    def _head(self, task: Detection, channels: Mapping[int, int]) -> nn.Module:
        groups = GROUPS if self.norm == "group" else 0
        style = HeadStyle(self.width, len(task.classes), task.anchor, groups)
        return PyramidHead(channels, style)
