"""Pyramids and heads for one level that read a module's map and banked maps."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.local.copies import CopiedNetwork, Copies
from ppll_cli.local.fba import bank_of
from ppll_cli.local.level_head import LevelDetection, LevelHead
from ppll_cli.local.pyramid_bank import BankedPyramid
from ppll_cli.tasks.detection import Detection
from ppll_cli.tasks.pyramid import HeadStyle, PyramidHead
from ppll_cli.tasks.task import Shape

HEIGHT, WIDTH = 64, 96
TASK = Detection(("a", "b", "c"), boxes=4, height=HEIGHT, width=WIDTH, anchor=16)
STYLE = HeadStyle(6, classes=3, anchor=16)
LEVEL = LevelDetection(**vars(TASK), style=STYLE)
HEAD = PyramidHead({8: 8, 16: 16, 32: 32}, STYLE)
BANK = FeatureBank(enabled=True)
OFF = FeatureBank(enabled=False)


def map_of(stride: int, channels: int) -> Tensor:
    return torch.randn(2, channels, HEIGHT // stride, WIDTH // stride, requires_grad=True)


def network(copies: Copies, banked: Sequence[Shape], bank: FeatureBank) -> BankedPyramid:
    made = bank_of(TASK).network(copies, banked, bank)
    assert isinstance(made, BankedPyramid)
    return made


@pytest.mark.parametrize(("fusion", "width"), [("concatenate", 8), ("add", 4)])
def test_banked_maps_are_a_pyramids_finer_ones(fusion: str, width: int) -> None:
    """The module has stride 16. Earlier modules have strides 8 and 16, and a copied unit has 32."""
    unit = nn.Conv2d(4, 5, 3, stride=2, padding=1)
    copies = Copies([unit], [(4, 4, 6), (5, 2, 3)], HEAD)
    banked = [(6, 8, 12), (4, 4, 6)]
    made = network(copies, banked, BANK.model_copy(update={"fusion": fusion}))
    assert made.head.channels == {8: 6, 16: width, 32: 5}
    x, early, finer = map_of(16, 4), map_of(16, 4).detach(), map_of(8, 6).detach()
    prediction = made(x, finer, early)
    assert not torch.equal(prediction, made(x, torch.zeros_like(finer), early))
    prediction[:, :, 5:].sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_without_a_bank_finer_maps_come_from_coarser_ones() -> None:
    unit = nn.Conv2d(4, 5, 3, stride=2, padding=1)
    copies = Copies([unit], [(4, 4, 6), (5, 2, 3)], HEAD)
    made = network(copies, [], OFF)
    assert made.head.channels == {16: 4, 32: 5}


def test_maps_that_no_pyramid_reads_are_not_banked() -> None:
    assert bank_of(TASK).form((64, 16, 24)) is None
    assert isinstance(bank_of(TASK).form((64, 8, 12)), nn.Identity)


def test_other_heads_and_shared_head_false_are_refused() -> None:
    copies = Copies([], [(4, 8, 12)], nn.Identity())
    with pytest.raises(ConfigError, match=r"derive it from .*PyramidHead, or use local=greedy"):
        bank_of(TASK).network(copies, [], BANK)
    own = BANK.model_copy(update={"shared_head": False})
    with pytest.raises(ConfigError, match=r"fba.shared_head=false: does not apply to detection"):
        bank_of(TASK).network(replace(copies, head=HEAD), [], own)


def copies_at(stride: int) -> Copies:
    """Return copied units that lead to strides 8, 16 and 32.

    From stride 4, two of them lead to 8.
    """
    strides = [stride, *(s for s in (8, 8, 16, 32) if s > stride)]
    shapes = [(s, HEIGHT // s, WIDTH // s) for s in strides]  # the number of channels is the stride
    units = [nn.Conv2d(a[0], b[0], 3, stride=a[1] // b[1], padding=1) for a, b in pairwise(shapes)]
    return Copies(units, shapes, HEAD)


def network_at(stride: int, banked: list[int], **bank: str) -> CopiedNetwork:
    """Return a network whose banked maps have twice as many channels as their stride."""
    shapes = [(2 * s, HEIGHT // s, WIDTH // s) for s in banked]
    made = bank_of(LEVEL).network(copies_at(stride), shapes, BANK.model_copy(update=bank))
    assert isinstance(made, CopiedNetwork)
    return made


@pytest.mark.parametrize(("stride", "units", "level"), [(4, 2, 8), (8, 0, 8), (16, 0, 16)])
def test_copied_units_coarser_than_the_finest_level_are_dropped(
    stride: int, units: int, level: int
) -> None:
    network = network_at(stride, [])
    assert isinstance(network.head, LevelHead)
    assert (len(network.units), network.head.stride) == (units, level)
    assert network(map_of(stride, stride)).shape[1] == 9 * (HEIGHT // level) * (WIDTH // level)


def test_banked_maps_are_averaged_down_to_the_level() -> None:
    network, x, bank = network_at(16, [8, 16]), map_of(16, 16), (map_of(8, 16), map_of(16, 32))
    head = network.head
    assert isinstance(head, LevelHead)
    assert head.project.in_channels == 16 + 16 + 32
    seen: list[Tensor] = []
    head.project.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    network(x, *bank)
    fine = bank[0].reshape(2, 16, HEIGHT // 16, 2, WIDTH // 16, 2).mean(dim=(3, 5))
    torch.testing.assert_close(seen[0], torch.cat((x, fine, bank[1]), dim=1))


def test_add_uses_only_banked_maps_with_the_same_number_of_channels() -> None:
    """The module's map and the banked map of stride 8 have 16 channels.

    That of stride 16 has 32.
    """
    network, x, bank = (
        network_at(16, [8, 16], fusion="add"),
        map_of(16, 16),
        (map_of(8, 16), map_of(16, 32)),
    )
    head = network.head
    assert isinstance(head, LevelHead)
    assert head.joined == [0, 1]
    expected = head(x + F.avg_pool2d(bank[0], 2), torch.zeros_like(bank[0]), bank[1])
    torch.testing.assert_close(network(x, *bank), expected)
