"""Greedy local learning: the smallest head."""

from ppll_cli.local.method import Criterion, Site


class Greedy:
    """Each module is trained through the task's smallest head (classification: pool, Linear)."""

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        return Criterion(site.task.smallest_head(site.spec.shape), site.feature, site.task)
