"""Auxiliary networks chosen from the rest of the backbone (AugLocal, arXiv 2402.17318)."""

from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.copies import copies_of, later_units
from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import check_depth
from ppll_cli.tasks.classification import ClassifierHead


class AugLocal(LocalMethod):
    """Each module is trained through copies of later units and of the model's head.

    Of the units between a module and the head, d are copied, in shape and not in weights. They
    stand at equal distances, so that features are prepared for what the whole rest of the model
    does to them: behind unit j, the module's last, they are the units round(j + i (L - j) / d) for
    i from 1 to d, where L is the last unit before the head; halves go to the even index. Where
    there are no more than d, all are copied. Where d is 1, BatchNorm stands between the pooled
    vector and the Linear. All of this, and He's rule for convolutions, is as in the paper's code
    (github.com/ChenxiangMA/AugLocal).

    A model whose head is not the paper's mean over positions and Linear has its own head copied,
    and tokens have no BatchNorm (both ours). In the paper's code the last module has d + 1 units:
    its "K=16" of ResNet-32 is 16 - d modules, the partition `auglocal_d3` and so on of the model.

    Args:
        depth: d of the first module, 1 or more.
        tau: How far d has fallen towards 1 at the last module with an auxiliary network, from 0,
            where it is the same for all, to 1. In between it falls linearly, rounded.
        detection_head: Of a detector, the levels on which a module is trained. With `level` these
            are those of the map that the last copied unit makes.
    """

    changed = "the choice of the units that they copy was mended, and a single copy has a BatchNorm"

    def __init__(
        self, *, depth: int = 2, tau: float = 0.5, detection_head: DetectionHead | None = None
    ) -> None:
        check_depth("local.depth", depth)
        if not 0 <= tau <= 1:
            raise ConfigError("local.tau", tau, "is out of range", "give 0 <= tau <= 1")
        self.depth, self.tau, self.detection_head = depth, tau, detection_head

    def criterion(self, site: Site) -> Criterion:
        """The auxiliary network and local loss of a module."""
        site = with_detection_head(site, self.detection_head)
        copies = copies_of(site, self._chosen(site), "auglocal")
        head = copies.head
        if self.detection_head == "level":
            head = site.task.smallest_head(copies.shapes[-1])
        elif (
            self._depth(site) == 1
            and isinstance(head, ClassifierHead)
            and len(site.spec.shape) == 3
        ):
            head = NormedHead(head)
        network = nn.Sequential(*copies.units, head)
        return Criterion(network, (site.feature,), site.task)

    def _chosen(self, site: Site) -> list[int]:
        """Indices of the units to copy."""
        later, depth = later_units(site), self._depth(site)
        if depth >= len(later):
            return list(later)
        end, last = site.stop - 1, later[-1]
        return [round(end + i * (last - end) / depth) for i in range(1, depth + 1)]

    def _depth(self, site: Site) -> int:
        """How many units a module's auxiliary network copies, where there are as many."""
        fallen = self.tau * site.progress
        return max(1, round(self.depth * (1 - fallen) + fallen))


class NormedHead(nn.Module):
    """A classifier with BatchNorm between its pooled vector and its Linear.

    Args:
        head: The classifier.
    """

    def __init__(self, head: ClassifierHead) -> None:
        super().__init__()
        self.head, self.norm = head, nn.BatchNorm1d(head.fc.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Features to logits [B, classes]."""
        logits: Tensor = self.head.fc(self.norm(self.head.pooled(x)))
        return logits
