"""Small models, and the end of their first module, for tests of methods that watch later units."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ppll_cli.local.method import Site
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.unit import ImageSpec, Model
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import Classification
from tests.local.conftest import CLASSES, site_over

IMAGES = ImageSpec(3, 8, 8, (0.5,), (0.25,))
RESNET = CifarResNet(depth=8)  # stem, layer1.0, layer2.0, layer3.0, head
VIT = ViT(dim=8, depth=3, heads=2, patch=4)  # embed, three blocks, head


def site_of(model: Model, starts: Sequence[int], task: Any = None) -> Site:
    """Return the end of the first module. Modules 2 to k begin at the units `starts`."""
    task = task or Classification(CLASSES)
    return site_over(model.units(IMAGES, task), IMAGES, task, starts)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}
