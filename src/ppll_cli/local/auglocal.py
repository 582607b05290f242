"""AugLocal: auxiliary networks copied from later units of the backbone (arXiv 2402.17318)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ppll_cli.leaves.limits import Depth, Share
from ppll_cli.local.copies import copies_of, later_units
from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.tasks.classification import ClassifierHead


@dataclass(kw_only=True, eq=False)
class AugLocal(LocalMethod):
    """Trains each module through copies of `d` later units and of the model's head.

    The copied units are evenly spaced between the module and the head; the last unit before the
    head is one of them. If there are fewer than `d` units, all are copied. Copies have new weights,
    initialised as the model's units are: in ResNets, convolutions by He's rule. If `d` is 1,
    BatchNorm is placed between the pooled vector and the Linear layer. All this follows the paper's
    code (github.com/ChenxiangMA/AugLocal).

    The paper's head is a mean over positions and a Linear layer. Our choice for models with another
    head: it is copied too, and for tokens no BatchNorm is added.

    Attributes:
        depth: `d` of the first module.
        tau: How far `d` falls: linearly, from `depth` at the first module to
            `depth * (1 - tau) + tau` at the last module with an auxiliary network. `d` is rounded.
        detection_head: See `DetectionHead`; None means `pyramid`. The local head's input map is
            the output of the last copied unit.
    """

    changed = "the choice of copied units was corrected, and a single copy has a BatchNorm"

    depth: Depth = 2
    tau: Share = 0.5
    detection_head: DetectionHead | None = None

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
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
        later, depth = later_units(site), self._depth(site)
        if depth >= len(later):
            return list(later)
        # Halves are rounded to the even index, as in the paper's code.
        end, last = site.stop - 1, later[-1]
        return [round(end + i * (last - end) / depth) for i in range(1, depth + 1)]

    def _depth(self, site: Site) -> int:
        fallen = self.tau * site.progress
        return max(1, round(self.depth * (1 - fallen) + fallen))


class NormedHead(nn.Module):
    """A classifier with BatchNorm between its pooled vector and its Linear layer."""

    def __init__(self, head: ClassifierHead) -> None:
        super().__init__()
        self.head, self.norm = head, nn.BatchNorm1d(head.fc.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] for features."""
        logits: Tensor = self.head.fc(self.norm(self.head.pooled(x)))
        return logits
