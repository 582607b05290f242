"""The positions of auxiliary networks, and the loss that trains each module."""

import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.greedy import Greedy
from ppll_cli.local.method import Criterion, Site, module_criterion
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import Classification

TASK = Classification(3)
UNITS = [
    Unit("stem", nn.Identity, reads=("image",), writes=("x", "early")),
    Unit("middle", nn.Identity, writes=("map", "x")),
    Unit("end", nn.Identity, reads=("map",), writes=("y",)),
    Unit("head", nn.Identity, reads=("y",), writes=("prediction",)),
]
FEATURES = [ValueSpec((width,), torch.float32) for width in (10, 20, 30, 3)]
MODULES = (range(2), range(2, 3), range(3, 4))
IMAGES = ImageSpec(1, 8, 8)


def site(module: int) -> Site:
    return Site(0, MODULES, UNITS, FEATURES, IMAGES, TASK).at(module)


def test_a_site_is_at_the_first_output_of_the_last_unit() -> None:
    sites = [site(module) for module in range(3)]
    assert [s.stop for s in sites] == [2, 3, 4]
    assert [s.feature for s in sites] == ["map", "y", "prediction"]
    assert [s.spec for s in sites] == FEATURES[1:]
    assert [s.is_last for s in sites] == [False, False, True]


def test_progress_runs_from_the_first_to_the_last_auxiliary_network() -> None:
    assert [site(module).progress for module in range(2)] == [0, 1]
    two = Site(0, (range(2), range(2, 4)), UNITS, FEATURES, IMAGES, TASK)
    assert two.progress == 0


def test_the_method_trains_all_modules_but_the_last() -> None:
    for module, feature in enumerate(("map", "y")):
        criterion = module_criterion(Greedy(), site(module))
        assert criterion.reads == (feature, "label")
        assert any(True for _ in criterion.parameters())


def test_the_task_trains_the_last_module() -> None:
    criterion = module_criterion(Greedy(), site(2))
    assert criterion.reads == ("prediction", "label")
    assert not list(criterion.parameters())
    values = {"prediction": torch.randn(4, 3), "label": torch.tensor([0, 1, 2, 0])}
    loss, prediction = criterion(values)
    assert prediction is values["prediction"]
    assert torch.equal(loss, TASK.loss(prediction, values))


def test_a_single_module_is_the_last_module() -> None:
    whole = Site(0, (range(4),), UNITS, FEATURES, IMAGES, TASK)
    assert not list(module_criterion(Greedy(), whole).parameters())


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_the_loss_is_computed_from_the_heads_prediction() -> None:
    values = {"x": torch.randn(4, 3), "label": torch.tensor([0, 1, 2, 0]), "more": torch.ones(1)}
    loss, prediction = Criterion(Doubled(), ("x",), TASK)(values)
    assert torch.equal(prediction, 2 * values["x"])
    assert torch.equal(loss, TASK.loss(2 * values["x"], values))
