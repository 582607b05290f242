"""FBA: auxiliary networks with a feature bank (arXiv 2406.00446).

The paper's abstract and its reviews describe the purpose of the two parts, the Simple Local Module
and the feature bank. How this program builds them is our own reading.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile, groupby, islice

import torch
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Depth
from ppll_cli.local.bank import Bank, InputBank, MapBank
from ppll_cli.local.copies import CopiedNetwork, copies_of, later_units
from ppll_cli.local.detection_head import DetectionHead, with_detection_head
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import Unit
from ppll_cli.tasks.classification import Classification, ClassifierHead
from ppll_cli.tasks.super_resolution import SuperResolution
from ppll_cli.tasks.task import Shape, Task

PROBE, ZEROED = "probe", "bank_zeroed"
"""Names of predictions that only evaluations measure: `PROBE` is the probe's prediction, `ZEROED`
the prediction of the network that reads the bank, with zeros in place of banked features."""


@dataclass(kw_only=True, eq=False)
class FBA(LocalMethod):
    """Trains each module through a Simple Local Module, which also reads a feature bank.

    The Simple Local Module consists of copies of the backbone's units, with new weights: the
    first units of each later resolution stage, then the model's head. For a module in the last
    resolution stage, it is the head alone. If a model has only one resolution stage, like a ViT,
    the units directly after the module are copied.

    The bank holds detached features of earlier modules. For classification these are pooled
    vectors, as in the paper; the copied head joins them with its own vector. For super-resolution,
    the bank holds by default only the output of the model's first unit. The values
    `fba.join=input`, `fba.trains=probe` and `fba.normalize=true` are our own variants (see
    `FeatureBank`).

    Attributes:
        bank: The settings of the bank.
        depth: Number of units copied from each later resolution stage, or in total if the model has
            only one resolution stage.
        detection_head: See `DetectionHead`; None means `pyramid`. `level` leaves out copied units
            with a stride above max(8, stride of the module's output).
    """

    bank: FeatureBank
    depth: Depth = 1
    detection_head: DetectionHead | None = None

    def criterion(self, site: Site) -> Criterion:  # noqa: D102
        site = with_detection_head(site, self.detection_head)
        copies = copies_of(site, self._copied(site), "fba")
        bank = bank_for(self.bank, site.task, site.units)
        read = self._read(site)
        features, banked = (site.feature, *read), list(read.values())
        kind = bank_of(site.task, bank.join)
        if bank.trains == "module" or not banked:
            network = kind.network(copies, banked, bank)
            return BankedCriterion(network, features, site.task, bank.measure_zeroed)
        alone = CopiedNetwork(copies.units, copies.head)
        probe = kind.probe(copies.head, banked, bank)
        return ProbedCriterion(alone, probe, features, site.task, bank.measure_zeroed)

    def exports(self, site: Site) -> Sequence[Unit]:  # noqa: D102
        name = _bank_name(site.module)
        later = range(site.module + 1, len(site.modules) - 1)
        if not any(name in self._read(site.at(module)) for module in later):
            return ()
        form = partial(_form, site.task, self.bank.join, site.spec.shape)
        return (Unit(name, form, (site.feature,), (name,)),)

    def _copied(self, site: Site) -> list[int]:
        shapes = [spec.shape for spec in site.features[:-1]]
        later = later_units(site)
        if len(set(shapes)) == 1:
            return list(later[: self.depth])
        later_stages = dropwhile(lambda index: shapes[index] == site.spec.shape, later)
        by_stage = groupby(later_stages, key=lambda index: shapes[index])
        return [index for _, stage in by_stage for index in islice(stage, self.depth)]

    def _read(self, site: Site) -> dict[str, Shape]:
        # The result has the shapes of the features before `Bank.form` converts them.
        bank = bank_for(self.bank, site.task, site.units)
        if not bank.enabled or bank.fusion == "none":
            return {}
        if bank.features == "first":
            return _long_skips(site)
        shapes = [site.at(module).spec.shape for module in range(site.module + 1)]
        form = bank_of(site.task, bank.join).form
        found = [module for module in range(site.module) if form(shapes[module]) is not None]
        if bank.features == "stage_ends":
            found = [module for module in found if shapes[module] != shapes[module + 1]]
        elif isinstance(bank.features, int):
            found = found[-bank.features :]
        return {_bank_name(module): shapes[module] for module in found}


class BankedCriterion(Criterion):
    """The task's loss on the prediction of a network that reads a feature bank.

    With `measure_zeroed`, evaluations also measure the prediction with the features of the bank set
    to zero (`ZEROED`).
    """

    def __init__(
        self, network: nn.Module, features: tuple[str, ...], task: Task, measure_zeroed: bool
    ) -> None:
        super().__init__(network, features, task)
        if measure_zeroed and len(features) > 1:
            self.further = (ZEROED,)

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:  # noqa: D102
        x, *bank = (values[name] for name in self.features)
        return {name: self.head(x, *map(torch.zeros_like, bank)) for name in self.further}


class ProbedCriterion(Criterion):
    """The loss for `fba.trains=probe`: only a probe reads the bank, without training the module.

    A Simple Local Module without the bank trains the module and makes the prediction. The probe
    reads the banked features and the detached vector that the head's last layer reads. It makes a
    prediction of its own (`PROBE`), which evaluations measure. The loss is the sum of the task's
    losses on both predictions. With `measure_zeroed`, evaluations also measure the probe's
    prediction with the features of the bank set to zero (`ZEROED`).
    """

    def __init__(
        self,
        network: CopiedNetwork,
        probe: nn.Module,
        features: tuple[str, ...],
        task: Task,
        measure_zeroed: bool,
    ) -> None:
        super().__init__(network, features, task)
        self.probe = probe
        self.further = (PROBE, ZEROED) if measure_zeroed else (PROBE,)

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:  # noqa: D102
        head, vector, bank = self._read(values)
        prediction = head.fc(vector)
        probed = self.probe(vector.detach(), *bank)
        return self.task.loss(prediction, values) + self.task.loss(probed, values), prediction

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:  # noqa: D102
        _, vector, bank = self._read(values)
        banks = (bank, [torch.zeros_like(b) for b in bank])
        return {name: self.probe(vector, *b) for name, b in zip(self.further, banks, strict=False)}

    def _read(
        self, values: Mapping[str, Tensor]
    ) -> tuple[ClassifierHead, Tensor, Sequence[Tensor]]:
        x, *bank = (values[name] for name in self.features)
        network = self.head
        assert isinstance(network, CopiedNetwork)
        head = network.head
        assert isinstance(head, ClassifierHead)
        return head, head.pooled(network.units(x)), bank


def bank_of(task: Task, join: str = "head") -> Bank:
    """Return the kind of bank for a task; `join` is the setting `fba.join`."""
    if join == "input":
        return InputBank()
    if isinstance(task, Classification):
        return Bank()
    if isinstance(task, SuperResolution):
        return MapBank()
    from ppll_cli.local.pyramid_bank import PyramidBank  # slow: imports torchvision
    from ppll_cli.tasks.detection import Detection

    return PyramidBank(task) if isinstance(task, Detection) else Bank()


def _form(task: Task, join: str, shape: Shape) -> nn.Module:
    network = bank_of(task, join).form(shape)
    assert network is not None
    return network


def bank_for(bank: FeatureBank, task: Task, units: Sequence[Unit]) -> FeatureBank:
    """Return the settings `fba.*`, with defaults for a task and a model in place of None.

    Raises:
        ConfigError: A setting does not apply to the task or the model.
    """
    kind = bank_of(task)
    if type(kind) is not Bank:
        bank.refuse_vectors()
    takes = kind.long_skips
    skips = len(units[-1].reads) > 1
    if bank.enabled and bank.features == "first" and not (takes and skips):
        what = "but the model's head reads no long skip" if takes else "but this is another task"
        problem = f"stands for the long skip of super-resolution, {what}"
        raise ConfigError("fba.features", "first", problem, "use fba.features=every")
    return bank.resolved(first=takes and skips)


def _long_skips(site: Site) -> dict[str, Shape]:
    # A long skip is an output of an early unit that the model's head reads besides its input.
    made = zip(site.units[: site.stop], site.features, strict=False)
    shapes = {unit.writes[0]: spec.shape for unit, spec in made}
    return {name: shapes[name] for name in site.units[-1].reads[1:] if name in shapes}


def _bank_name(module: int) -> str:
    return f"bank.{module}"
