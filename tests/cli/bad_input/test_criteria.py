"""The loss of a user's local method that cannot be used is refused in one line."""

from collections.abc import Mapping

import pytest
from torch import Tensor, nn

from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.tasks.task import Task
from tests.cli.bad_input.conftest import Refused


class Unreduced(Criterion):
    """A criterion whose loss is no scalar."""

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, prediction = super().forward(values)
        return loss[None], prediction


class OnlyLoss(Criterion):
    """A criterion that returns no prediction."""

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return super().forward(values)[0]  # type: ignore[return-value]


class ChangesLabel(Criterion):
    """A criterion that changes the labels, so that the next module would learn other ones."""

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        values["label"].clamp_(max=1)
        return super().forward(values)


class NoFurther(Criterion):
    """A criterion that announces another prediction, and does not make it."""

    def __init__(self, head: nn.Module, features: tuple[str, ...], task: Task) -> None:
        super().__init__(head, features, task)
        self.further = ("probe",)


class ListsFurther(NoFurther):
    """A criterion that returns predictions without names."""

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return [*values.values()]  # type: ignore[return-value]


class ChangesFurther(NoFurther):
    """A criterion that changes the labels when it makes another prediction."""

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"probe": values["label"].clamp_(max=1)}


class ReadsFurther(NoFurther):
    """A criterion that reads a value of its input, which the meta device does not have."""

    def predict_further(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"probe": values["x"] * values["x"].sum().item()}


class OneLoss(LocalMethod):
    """A local method whose criteria belong to one of the classes above, and may read a tensor."""

    def __init__(self, *, cls: str, reads: str) -> None:
        self.cls, self.reads = globals()[cls], reads

    def criterion(self, site: Site) -> Criterion:
        criterion: Criterion = self.cls(
            site.task.smallest_head(site.spec.shape), (site.feature,), site.task
        )
        criterion.reads += (self.reads,)
        return criterion


@pytest.mark.parametrize(
    ("cls", "reads", "problem"),
    [
        (
            "Unreduced",
            "label",
            "returned a tensor torch.float32 [1], a tensor torch.float32 [1, 10]",
        ),
        ("OnlyLoss", "label", "returned a tensor torch.float32 [] instead of a loss"),
        (
            "ChangesLabel",
            "label",
            "changes its input 'label' in place, but later modules may read it",
        ),
        ("NoFurther", "label", "its predict_further() returned nothing instead of probe"),
        ("ListsFurther", "label", "returned list instead of a mapping from names to predictions"),
        ("ChangesFurther", "label", "changes its input 'label' in place, but later modules may"),
        ("ReadsFurther", "label", "built and run, with its loss, on torch's meta device"),
        ("Criterion", "depth", "reads 'depth', but the tensors are image, label, x"),
    ],
)
def test_a_criterion_that_returns_no_loss_is_refused(
    refused: Refused, cls: str, reads: str, problem: str
) -> None:
    """Its worker failed with an error of torch about something else."""
    options = f"+local.cls={cls} +local.reads={reads}"
    refused(f"{options} local._target_={__name__}.OneLoss", problem)
