"""A loss that trains no module, or changes what others read, must not go unnoticed."""

from collections.abc import Mapping

import pytest
from torch import Tensor

from ppll_cli.local.method import Criterion
from ppll_cli.worker.chunk import HeldChunk
from tests.worker.test_chunk import batches, begin, forward, whole_model


class Cut(Criterion):
    """A criterion whose loss has no gradient."""

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, prediction = super().forward(values)
        return loss.detach(), prediction


class OfDetached(Criterion):
    """A criterion that trains its own head alone."""

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        (feature,) = self.features
        return super().forward({**values, feature: values[feature].detach()})


class Relabels(Criterion):
    """A criterion that changes labels before its loss reads them. Autograd does not notice it."""

    def forward(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.training:
            values["label"].fill_(0)
        return super().forward(values)


@pytest.fixture
def cut() -> HeldChunk:
    """The first of two modules, after its forward pass."""
    chunks = whole_model("vit", ["local=greedy"], modules=2)
    assert chunks[0].criterion is not None
    chunks[0].criterion.__class__ = Cut
    begin(chunks)
    (batch,) = batches(1)
    forward(chunks, 0, batch)
    return chunks[0]


def test_a_loss_without_gradient_is_refused(cut: HeldChunk) -> None:
    with pytest.raises(RuntimeError, match="the loss of module 0 depends on none of the parameter"):
        cut.loss(0)


def test_a_module_may_be_frozen(cut: HeldChunk) -> None:
    for parameter in cut.parameters:
        parameter.requires_grad_(False)
    cut.loss(0)
    cut.backward(0)
    assert all(parameter.grad is None for parameter in cut.parameters)


def test_a_loss_that_changes_labels_in_training_is_refused(cut: HeldChunk) -> None:
    """Modules on the same stage would have read other labels than modules on other stages."""
    assert cut.criterion is not None
    cut.criterion.__class__ = Relabels
    with pytest.raises(RuntimeError, match="the loss of module 0 changes 'label' in place"):
        cut.loss(0)


TOLD = "the loss of module 0 does not train the module's units"


@pytest.mark.parametrize("trained", [True, False])
def test_units_without_an_output_that_has_a_gradient_are_told(
    cut: HeldChunk, caplog: pytest.LogCaptureFixture, trained: bool
) -> None:
    """A module that ends with token ids, for example, was not trained, without a word."""
    assert cut.criterion is not None
    cut.criterion.__class__ = Criterion
    values = cut.tensors[0].values
    values.update({name: tensor.detach() for name, tensor in values.items()})
    if not trained:
        for parameter in cut.parameters:
            parameter.requires_grad_(False)
    cut.loss(0)
    assert [record.getMessage()[:54] for record in caplog.records] == [TOLD][: int(trained)]


def test_a_loss_that_trains_only_its_own_head_is_told_once(
    cut: HeldChunk, caplog: pytest.LogCaptureFixture
) -> None:
    assert cut.criterion is not None
    cut.criterion.__class__ = OfDetached
    for _ in range(2):
        cut.loss(0)
    assert [record.getMessage()[:54] for record in caplog.records] == [TOLD]
    assert all(parameter.grad is not None for parameter in cut.criterion.parameters())
