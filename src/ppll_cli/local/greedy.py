"""Greedy local learning: the smallest head."""

from ppll_cli.local.method import Criterion, LocalMethod, Site


class Greedy(LocalMethod):
    """Each module is trained through the task's smallest head (classification: pool, Linear)."""

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        head = site.task.smallest_head(site.spec.shape)
        return Criterion(head, (site.feature,), site.task)
