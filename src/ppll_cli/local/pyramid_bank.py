"""The feature bank for detection: it holds maps, from which later modules build their pyramids.

Legend: B batch, A anchors of a picture, C classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.local.bank import Bank, fused
from ppll_cli.local.copies import CopiedNetwork, Copies
from ppll_cli.local.level_head import LevelDetection, Maps, fusible
from ppll_cli.local.parts import head_of
from ppll_cli.tasks.detection import Detection
from ppll_cli.tasks.pyramid import STRIDES, PyramidHead
from ppll_cli.tasks.task import Shape


class PyramidBank(Bank):
    """The bank for detection: it holds unchanged maps, of the strides that a pyramid reads."""

    def __init__(self, task: Detection) -> None:
        self.task = task

    def form(self, shape: Shape) -> nn.Module | None:  # noqa: D102
        return nn.Identity() if self.task.stride("fba", "on", shape) in STRIDES else None

    def network(  # noqa: D102
        self, copies: Copies, banked: Sequence[Shape], bank: FeatureBank
    ) -> nn.Module:
        head = head_of(copies.head, PyramidHead, ("local", "fba"), "use local=greedy")
        if not bank.shared_head:
            problem = "does not apply to detection, where the pyramid fuses the maps"
            raise ConfigError("fba.shared_head", False, problem, "leave it out")
        own, earlier = self._maps(copies.shapes), self._maps(banked)
        if not isinstance(self.task, LevelDetection):
            return BankedPyramid(copies.units, head, own, earlier, bank.joined)
        # Leave out copied units whose output is coarser than this stride.
        coarsest = max(STRIDES[0], own[0][0])
        last = sum(stride <= coarsest for stride, _ in own) - 1  # later maps are never finer
        level = self.task.level_head([own[last], *earlier], bank.joined)
        return CopiedNetwork(copies.units[:last], level)

    def _maps(self, shapes: Sequence[Shape]) -> Maps:
        return [(self.task.stride("local", "fba", shape), shape[0]) for shape in shapes]


class BankedPyramid(nn.Module):
    """An auxiliary network for detection with a feature bank (our reading of arXiv 2406.00446).

    Copies of later units compute more maps from the module's map. Like the module's map, these are
    called own maps. Banked maps are detached maps of earlier modules. For each stride, the last own
    map of this stride is fused with the banked maps of this stride. A `PyramidHead` reads the
    results.

    With the fusion `add`, banked maps with another number of channels than the last own map are
    left out. If a stride has no own map, its last banked map takes the role of the last own map.

    Args:
        units: The copied units.
        head: The model's head; the `PyramidHead` gets its settings.
        own: Stride and number of channels of each own map.
        banked: Stride and number of channels of each banked map.
        fusion: `add` or `concatenate`.

    Attributes:
        plan: For each stride, the maps to fuse, as indices in `[*banked, *own]`.
    """

    def __init__(
        self, units: Sequence[nn.Module], head: PyramidHead, own: Maps, banked: Maps, fusion: str
    ) -> None:
        super().__init__()
        self.units, self.fusion = nn.ModuleList(units), fusion
        maps = [*banked, *own]
        last = {stride: len(banked) + number for number, (stride, _) in enumerate(own)}
        self.plan: dict[int, list[int]] = {}
        channels = {}
        for stride in STRIDES:
            chosen = [number for number, (at, _) in enumerate(banked) if at == stride]
            chosen += [last[stride]] if stride in last else []
            if chosen:
                self.plan[stride], channels[stride] = fusible(maps, chosen, chosen[-1], fusion)
        self.head = PyramidHead(channels, head.style)

    def forward(self, x: Tensor, *bank: Tensor) -> Tensor:
        """Return the prediction, float32 [B, A, 9 + C] (see `Anchors.forward`).

        Args:
            x: The module's map, [B, channels, H, W].
            bank: The banked maps, [B, channels, H, W].
        """
        maps = [*bank, x]
        for unit in self.units:
            maps.append(unit(maps[-1]))
        joined = {
            stride: fused([maps[number] for number in chosen], self.fusion)
            for stride, chosen in self.plan.items()
        }
        prediction: Tensor = self.head(*(joined[at] for at in sorted(joined, reverse=True)))
        return prediction
