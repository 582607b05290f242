"""Transformer blocks as auxiliary networks, as PPLL trains its ViT (arXiv 2411.12780)."""

from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.method import Criterion, Site


class ViTBlocks:
    """Each module is trained through transformer blocks of its own and a copy of the head.

    The blocks are shaped like the one that follows the module (the last block where none follows),
    and the head, LayerNorm, pooling and Linear, like the model's; both have fresh weights.

    Args:
        depth: Blocks of each auxiliary network, or a list with the number for each module but the
            last. 0 is the head alone.
    """

    def __init__(self, *, depth: int | list[int] = 1) -> None:
        depths = depth if isinstance(depth, list) else [depth]
        if any(number < 0 for number in depths):
            raise ConfigError("local.depth", depth, "must not be negative", "0 is the head alone")
        self.depth = depth

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        if len(site.spec.shape) != 2:
            end = site.units[site.stop - 1].name
            raise ConfigError(
                "local",
                "vit_blocks",
                f"needs tokens [T, D], but {end!r} makes {list(site.spec.shape)}",
                "use a ViT model, or local=greedy or local=dgl",
            )
        before_head = len(site.units) - 2
        block, head = site.units[min(site.stop, before_head)], site.units[-1]
        blocks = [block.build() for _ in range(self._depth(site))]
        return Criterion(nn.Sequential(*blocks, head.build()), site.feature, site.task)

    def _depth(self, site: Site) -> int:
        if not isinstance(self.depth, list):
            return self.depth
        if len(self.depth) != site.modules - 1:
            raise ConfigError(
                "local.depth",
                self.depth,
                f"has {len(self.depth)} numbers, but {site.modules - 1} modules have an auxiliary "
                "network",
                "give one number for each module but the last",
            )
        return self.depth[site.module]
