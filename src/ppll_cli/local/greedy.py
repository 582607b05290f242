"""Greedy local learning: each module trains through a small prediction head."""

from dataclasses import dataclass

from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.method import Criterion, LocalMethod, Site


@dataclass(kw_only=True, eq=False)
class Greedy(LocalMethod):
    """Trains each module through the task's smallest head.

    For classification, this is a pool and a Linear layer.

    Attributes:
        detection_head: Only for detectors: the pyramid levels on which a module trains (see
            `DetectionHead`). None means `pyramid`. The local head reads the module's output.
    """

    detection_head: DetectionHead | None = None

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
        site = with_detection_head(site, self.detection_head)
        head = site.task.smallest_head(site.spec.shape)
        return Criterion(head, (site.feature,), site.task)
