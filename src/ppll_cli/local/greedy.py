"""Greedy local learning: the smallest head."""

from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.method import Criterion, LocalMethod, Site


class Greedy(LocalMethod):
    """Each module is trained through the task's smallest head (classification: pool, Linear).

    Args:
        detection_head: Of a detector, the levels on which a module is trained.
    """

    def __init__(self, *, detection_head: DetectionHead | None = None) -> None:
        self.detection_head = detection_head

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        site = with_detection_head(site, self.detection_head)
        head = site.task.smallest_head(site.spec.shape)
        return Criterion(head, (site.feature,), site.task)
