"""Where auxiliary networks stand, and what trains a module."""

import torch
from torch import Tensor, nn

from ppll_cli.local.greedy import Greedy
from ppll_cli.local.method import Criterion, Site, module_criterion
from ppll_cli.models.unit import Unit, ValueSpec
from ppll_cli.tasks.classification import Classification

TASK = Classification(3)
UNITS = [
    Unit("stem", nn.Identity, reads=("image",), writes=("x", "early")),
    Unit("middle", nn.Identity, writes=("map", "x")),
    Unit("end", nn.Identity, reads=("map",), writes=("y",)),
    Unit("head", nn.Identity, reads=("y",), writes=("prediction",)),
]
FEATURES = [ValueSpec((width,), torch.float32) for width in (10, 20, 30, 3)]
MODULES = [range(2), range(2, 3), range(3, 4)]


def site(module: int) -> Site:
    return Site.of(MODULES, module, UNITS, FEATURES, TASK)


def test_a_site_is_at_the_first_output_of_the_last_unit() -> None:
    assert site(0) == Site(0, 3, UNITS, 2, "map", FEATURES[1], TASK)
    assert site(1) == Site(1, 3, UNITS, 3, "y", FEATURES[2], TASK)
    assert site(2) == Site(2, 3, UNITS, 4, "prediction", FEATURES[3], TASK)


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


def test_one_module_is_the_last() -> None:
    whole = Site.of([range(4)], 0, UNITS, FEATURES, TASK)
    assert not list(module_criterion(Greedy(), whole).parameters())


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_the_loss_is_taken_of_what_the_head_predicts() -> None:
    values = {"x": torch.randn(4, 3), "label": torch.tensor([0, 1, 2, 0]), "more": torch.ones(1)}
    loss, prediction = Criterion(Doubled(), "x", TASK)(values)
    assert torch.equal(prediction, 2 * values["x"])
    assert torch.equal(loss, TASK.loss(2 * values["x"], values))
