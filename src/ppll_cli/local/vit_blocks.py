"""Transformer blocks as auxiliary networks, as in the PPLL paper's ViT (arXiv 2411.12780)."""

from typing import Annotated

from pydantic import Field
from torch import nn

from ppll_cli.config.targets import checked
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import MOST_LAYERS
from ppll_cli.leaves.names import counted
from ppll_cli.local.copies import copies_of, later_units
from ppll_cli.local.method import Criterion, LocalMethod, Site

Blocks = Annotated[int, Field(ge=0, le=MOST_LAYERS)]


class ViTBlocks(LocalMethod):
    """Trains each module through transformer blocks and a head like the model's.

    The head has LayerNorm, pooling and a Linear layer. All weights start at random values. A block
    has the size of the model's block that follows the module. If none follows, it has the size of
    the model's last block.

    Args:
        depth: Number of blocks of each auxiliary network; 0 means the head alone. A list has one
            number for each auxiliary network. A text such as `2-0` means 2 for the first auxiliary
            network and 0 for the last; in between, the number changes linearly and is rounded. This
            is our reading of the paper's "front blocks 1 or 2, last blocks 0".

    Raises:
        ConfigError: A number is below 0 or too large, or a text is not two numbers such as `2-0`.
    """

    def __init__(self, *, depth: int | list[int] | str = 1) -> None:
        self._ends = _schedule(depth) if isinstance(depth, str) else None
        for number in self._ends or (depth if isinstance(depth, list) else [depth]):
            checked("local.depth", number, Blocks)
        self.depth = depth

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
        if len(site.spec.shape) != 2:
            end = site.units[site.stop - 1].name
            problem = f"needs tokens [T, D], but {end!r} makes {list(site.spec.shape)}"
            remedy = "use a ViT model, or local=greedy or local=dgl"
            raise ConfigError("local", "vit_blocks", problem, remedy)
        block = min(site.stop, later_units(site).stop - 1)
        copies = copies_of(site, [block] * self._depth(site), "vit_blocks")
        network = nn.Sequential(*copies.units, copies.head)
        return Criterion(network, (site.feature,), site.task)

    def _depth(self, site: Site) -> int:
        if self._ends is not None:
            front, back = self._ends
            return round(front + (back - front) * site.progress)
        if not isinstance(self.depth, list):
            assert isinstance(self.depth, int)
            return self.depth
        auxiliary = len(site.modules) - 1
        if len(self.depth) != auxiliary:
            raise ConfigError(
                "local.depth",
                self.depth,
                f"has {counted(len(self.depth), 'number')}, but there are "
                f"{counted(auxiliary, 'auxiliary network')}",
                "give one number for each module but the last",
            )
        return self.depth[site.module]


def _schedule(depth: str) -> tuple[int, int]:
    front, dash, back = depth.partition("-")
    if not (dash and front.isdecimal() and back.isdecimal()):
        raise ConfigError(
            "local.depth", depth, "is not FRONT-BACK", "give two numbers, for example 2-0"
        )
    return int(front), int(back)
