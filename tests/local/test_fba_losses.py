"""Losses with a feature bank, and their measurements in evaluations."""

import torch
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.local.bank import FusedHead, VectorHead
from ppll_cli.local.copies import CopiedNetwork
from ppll_cli.local.fba import BankedCriterion, ProbedCriterion
from ppll_cli.tasks.classification import Classification

TASK = Classification(3)
NAMES = ("x", "bank.0", "bank.1")


def values() -> dict[str, Tensor]:
    tensors = {"x": torch.randn(6, 4), "bank.0": torch.randn(6, 2), "bank.1": torch.randn(6, 5)}
    return {**tensors, "label": torch.arange(6) % 3}


def reader() -> FusedHead:
    """Return a head that uses its bank, as if it had been trained."""
    head = FusedHead(VectorHead(4, 3), [2, 5], FeatureBank(enabled=True))
    assert head.mix is not None
    nn.init.normal_(head.mix.weight)
    return head


def probed(measure_zeroed: bool) -> tuple[ProbedCriterion, CopiedNetwork]:
    network = CopiedNetwork([nn.Linear(4, 4)], VectorHead(4, 3))
    return ProbedCriterion(network, reader(), NAMES, TASK, measure_zeroed), network


def test_the_bank_of_zeros_is_measured_on_request() -> None:
    head, given = reader(), values()
    criterion = BankedCriterion(head, NAMES, TASK, True)
    assert criterion.further == ("bank_zeroed",)
    found = criterion.predict_further(given)
    expected = head(given["x"], torch.zeros(6, 2), torch.zeros(6, 5))
    torch.testing.assert_close(found, {"bank_zeroed": expected})
    _, prediction = criterion(given)
    assert not torch.allclose(prediction, expected)
    without = BankedCriterion(head, NAMES, TASK, False)
    assert (without.further, without.predict_further(given)) == ((), {})


def test_a_module_without_a_bank_has_nothing_to_set_to_zero() -> None:
    criterion = BankedCriterion(VectorHead(4, 3), NAMES[:1], TASK, True)
    assert (criterion.further, criterion.predict_further(values())) == ((), {})


def test_a_probe_trains_only_itself() -> None:
    """The module and the Simple Local Module get the gradients that they get without a bank."""
    criterion, network = probed(False)
    given = values()
    given["x"].requires_grad_()
    loss, prediction = criterion(given)
    expected = TASK.loss(network(given["x"]), given)
    own = [given["x"], *network.parameters()]
    wanted = torch.autograd.grad(expected, own)
    probe = list(criterion.probe.parameters())
    found = torch.autograd.grad(loss, [*own, *probe])
    torch.testing.assert_close(found[: len(own)], wanted)
    assert all(gradient.any() for gradient in found[len(own) :])
    assert torch.equal(prediction, network(given["x"]))
    further = criterion.predict_further(given)
    torch.testing.assert_close(loss, expected + TASK.loss(further["probe"], given))


def test_evaluations_measure_the_probe() -> None:
    for zeroed in (False, True):
        criterion, network = probed(zeroed)
        given = values()
        vector = network.units(given["x"])
        bank = [given[name] for name in NAMES[1:]]
        expected = {"probe": criterion.probe(vector, *bank)}
        if zeroed:
            expected["bank_zeroed"] = criterion.probe(vector, *(0 * b for b in bank))
        assert criterion.further == tuple(expected)
        torch.testing.assert_close(criterion.predict_further(given), expected)
