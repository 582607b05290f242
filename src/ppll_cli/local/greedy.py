"""Greedy local learning through the task's smallest head."""

from dataclasses import dataclass

from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.method import Criterion, LocalMethod, Site


@dataclass(kw_only=True, eq=False)
class Greedy(LocalMethod):
    """Trains each module through the task's smallest head.

    For classification this head consists of a pool and a Linear layer.

    Attributes:
        detection_head: See `DetectionHead`; None means `pyramid`. The local head's input map is the
            module's output.
    """

    detection_head: DetectionHead | None = None

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
        site = with_detection_head(site, self.detection_head)
        head = site.task.smallest_head(site.spec.shape)
        return Criterion(head, (site.feature,), site.task)
