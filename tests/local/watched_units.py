"""Small models, and the end of their first module, for tests of methods that watch later units."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Site
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.trace import trace
from ppll_cli.models.unit import IMAGE, ImageSpec, Model
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import LABEL, Classification
from tests.local.conftest import CLASSES

IMAGES = ImageSpec(3, 8, 8, (0.5,), (0.25,))
RESNET = CifarResNet(depth=8)  # stem, layer1.0, layer2.0, layer3.0, head
VIT = ViT(dim=8, depth=3, heads=2, patch=4)  # embed, three blocks, head


def site_of(model: Model, starts: Sequence[int], task: Any = None) -> Site:
    """Return the end of the first module. Modules 2 to k begin at the units `starts`."""
    task = task or Classification(CLASSES)
    units = list(model.units(IMAGES, task))
    batch = {IMAGE: ValueSpec((3, 8, 8), torch.float32), LABEL: ValueSpec((), torch.int64)}
    features = [traced.outputs[0] for traced in trace(units, batch)]
    edges = [0, *starts, len(units)]
    modules = tuple(range(a, b) for a, b in pairwise(edges))
    return Site(0, modules, units, features, IMAGES, task)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}
