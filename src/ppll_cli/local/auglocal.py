"""Auxiliary networks chosen from the rest of the backbone (AugLocal, arXiv 2402.17318)."""

from torch import nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.copies import copies_of, later_units
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import check_depth


class AugLocal(LocalMethod):
    """Each module is trained through copies of later units and of the model's head.

    Of the n units between a module and the head, d are copied, in shape and not in weights. They
    stand at equal distances, so that features are prepared for what the whole rest of the model
    does to them, and the last of the n is always among them. Where there are no more than d, all
    are copied. A model whose head is not the paper's mean over positions and Linear has its own
    head copied, and a single copied unit has no BatchNorm between it and the Linear (both ours).

    Args:
        depth: d of the first module, 1 or more.
        tau: How far d has fallen towards 1 at the last module with an auxiliary network, from 0,
            where it is the same for all, to 1. In between it falls linearly, rounded, as in the
            paper's code (github.com/ChenxiangMA/AugLocal).
    """

    def __init__(self, *, depth: int = 2, tau: float = 0.5) -> None:
        check_depth("local.depth", depth)
        if not 0 <= tau <= 1:
            raise ConfigError("local.tau", tau, "is out of range", "give 0 <= tau <= 1")
        self.depth, self.tau = depth, tau

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        copies = copies_of(site, self._chosen(site), "auglocal")
        network = nn.Sequential(*copies.units, copies.head)
        return Criterion(network, (site.feature,), site.task)

    def _chosen(self, site: Site) -> list[int]:
        """Indices of the units to copy."""
        later, depth = later_units(site), self._depth(site)
        if depth >= len(later):
            return list(later)
        distance = len(later) / depth
        return [site.stop - 1 + round(distance * number) for number in range(1, depth + 1)]

    def _depth(self, site: Site) -> int:
        """How many units a module's auxiliary network copies, where there are as many."""
        fallen = self.tau * site.progress
        return max(1, round(self.depth * (1 - fallen) + fallen))
