"""Transformer blocks as auxiliary networks."""

from functools import partial

import pytest
import torch
from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import Site, module_criterion
from ppll_cli.local.vit_blocks import ViTBlocks
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.models.vit import Block, Head, ViT
from ppll_cli.tasks.classification import Classification
from tests.local.conftest import CLASSES, Train, site_over

TASK = Classification(CLASSES)
IMAGES = ImageSpec(1, 8, 8)


def sites(model: ViT | CifarResNet, modules: list[range]) -> list[Site]:
    starts = [module.start for module in modules[1:]]
    site = site_over(model.units(IMAGES, TASK), IMAGES, TASK, starts)
    return [site.at(module) for module in range(len(modules))]


def small(pooling: str = "cls") -> ViT:
    return ViT(dim=8, depth=4, heads=2, patch=4, mlp_ratio=2.0, pooling=pooling)  # type: ignore[arg-type]


MODULES = [range(1), range(1, 3), range(3, 5), range(5, 6)]  # embed | 0 1 | 2 3 | head


def blocks(network: nn.Module) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_every_parameter_has_a_gradient(pooling: str, depth: int, train: Train) -> None:
    for site in sites(small(pooling), MODULES)[:-1]:
        criterion, feature = train(ViTBlocks(depth=depth), site)
        assert all(parameter.grad is not None for parameter in criterion.parameters())
        assert feature.grad is not None
        assert len(blocks(criterion)) == depth
        (head,) = (module for module in criterion.modules() if isinstance(module, Head))
        assert head.pooling == pooling


def test_a_list_gives_the_depth_of_each_module() -> None:
    method = ViTBlocks(depth=[2, 1, 0])
    found = [blocks(module_criterion(method, site)) for site in sites(small(), MODULES)]
    assert [len(module) for module in found] == [2, 1, 0, 0]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [("2-0", [2, 1, 0]), ("1-1", [1, 1, 1]), ("0-4", [0, 2, 4]), ("3-2", [3, 2, 2])],
)
def test_depth_falls_along_the_modules(depth: str, expected: list[int]) -> None:
    method = ViTBlocks(depth=depth)
    found = [blocks(module_criterion(method, site)) for site in sites(small(), MODULES)]
    assert [len(module) for module in found] == [*expected, 0]


@pytest.mark.parametrize("depth", ["2", "2-", "a-b", "-1-0", "2-1-0"])
def test_an_invalid_front_back_text_is_refused(depth: str) -> None:
    with pytest.raises(ConfigError, match=r"is not FRONT-BACK; give two numbers, for example 2-0$"):
        ViTBlocks(depth=depth)


def test_blocks_have_the_sizes_of_the_block_after_the_module() -> None:
    """If only the head is behind the module, the blocks are like its last block."""

    def block(hidden: int) -> partial[Block]:
        return partial(Block, 8, 2, hidden, 0.0, 0.0)

    head = partial(Head, 8, CLASSES, "cls")
    units = [Unit(f"blocks.{n}", block(hidden)) for n, hidden in enumerate((16, 24, 32))]
    units.append(Unit("head", head, writes=("prediction",)))
    tokens = ValueSpec((5, 8), torch.float32)
    hidden = []
    for stop in (1, 2, 3):
        modules = (range(stop), range(stop, 4))
        site = Site(0, modules, units, [tokens] * 4, IMAGES, TASK)
        (built,) = blocks(ViTBlocks().criterion(site))
        hidden.append(next(m.out_features for m in built.mlp if isinstance(m, nn.Linear)))
    assert hidden == [24, 32, 32]


def test_weights_are_fresh() -> None:
    site = sites(small(), MODULES)[0]
    one, other = (blocks(ViTBlocks().criterion(site))[0] for _ in range(2))
    assert not torch.equal(one.self_attention.in_proj_weight, other.self_attention.in_proj_weight)


@pytest.mark.parametrize(
    ("depth", "line"),
    [
        (-1, "local.depth=-1: must be greater than or equal to 0"),
        ([1, -1, 0], "local.depth=-1: must be greater than or equal to 0"),
        ("0-5000", "local.depth=5000: must be less than or equal to 4096"),
    ],
)
def test_invalid_depths_are_refused(depth: int | list[int] | str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ViTBlocks(depth=depth)
    assert str(caught.value) == line


@pytest.mark.parametrize("depth", [[], [1], [1, 1], [1, 1, 1, 1]])
def test_a_list_with_a_wrong_number_of_depths_is_refused(depth: list[int]) -> None:
    with pytest.raises(ConfigError) as caught:
        ViTBlocks(depth=depth).criterion(sites(small(), MODULES)[0])
    assert (caught.value.key, caught.value.value) == ("local.depth", depth)
    numbers = "1 number" if len(depth) == 1 else f"{len(depth)} numbers"
    assert caught.value.problem == f"has {numbers}, but there are 3 auxiliary networks"


def test_maps_are_refused() -> None:
    site = sites(CifarResNet(depth=8), [range(2), range(2, 5)])[0]
    with pytest.raises(ConfigError) as caught:
        ViTBlocks().criterion(site)
    assert str(caught.value) == (
        "local=vit_blocks: needs tokens [T, D], but 'layer1.0' makes [16, 8, 8]; "
        "use a ViT model, or local=greedy or local=dgl"
    )
