"""The ends of modules, and the criteria of InfoPro there."""

import torch
from torch import nn

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.infopro import Decoder, InfoPro, InfoProCriterion, Loss
from ppll_cli.local.method import Site
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import Classification
from tests.local.conftest import CLASSES

LOSSES: list[Loss] = ["softmax", "contrastive"]
COLOUR = ImageSpec(3, 6, 5, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))


def sites(modules: int, shape: tuple[int, ...] = (8, 4, 4)) -> list[Site]:
    """Return the ends of modules of one unit each. The last module has no auxiliary network."""
    units = [Unit(f"unit.{n}", nn.Identity) for n in range(modules)]
    ranges = tuple(range(n, n + 1) for n in range(modules))
    features = [ValueSpec(shape, torch.float32)] * modules
    site = Site(0, ranges, units, features, COLOUR, Classification(CLASSES))
    return [site.at(module) for module in range(modules - 1)]


def built(method: InfoPro, site: Site) -> InfoProCriterion:
    criterion = method.criterion(site)
    assert isinstance(criterion, InfoProCriterion)
    return criterion


def decoding(method: InfoPro, site: Site) -> tuple[InfoProCriterion, Decoder]:
    """Return the criterion of a module that has a decoder, and the decoder."""
    criterion = built(method, site)
    assert criterion.decoder is not None
    return criterion, criterion.decoder
