"""Which networks and models have the same costs."""

import torch
from torch import nn

from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.vit import ViT
from ppll_cli.predict.fingerprint import source_digest, structure


def test_networks_of_equal_structure_have_equal_costs() -> None:
    def layers(width: int = 8, dropout: float = 0.1) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Dropout(dropout))

    assert structure(layers()) == structure(layers())
    with torch.device("meta"):
        assert structure(layers()) == structure(layers().eval())
    others = [layers(9), layers(dropout=0.2), nn.Sequential(*list(layers())[:2]), layers().double()]
    others.append(layers().requires_grad_(False))
    assert len({structure(network) for network in (layers(), *others)}) == 6


def test_kept_times_depend_on_the_code_of_the_model() -> None:
    vit, resnet = ViT(dim=8, depth=1, heads=1, patch=4), CifarResNet(depth=8)
    assert source_digest(vit, resnet) != source_digest(resnet)
    assert source_digest(vit) == source_digest(ViT(dim=16, depth=1, heads=1, patch=4))
