"""A feature bank that is joined to the input of the Simple Local Module."""

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.local.copies import CopiedNetwork, Copies
from ppll_cli.local.input_bank import InputBank, JoinedAtInput
from ppll_cli.tasks.task import Shape

BANK = FeatureBank(enabled=True, features="every", fusion="concatenate", join="input")

FEATURES: dict[str, tuple[Shape, list[Shape]]] = {
    "maps": ((6, 3, 4), [(2, 6, 8), (3, 5, 7), (6, 3, 4)]),
    "tokens": ((5, 6), [(5, 6), (5, 4)]),
    "vectors": ((6,), [(3,), (8,)]),
}


def network(own: Shape, banked: list[Shape], fusion: str = "concatenate") -> JoinedAtInput:
    """Return a network without copied units and head.

    It returns the tensor that they would read.
    """
    bank = BANK.model_copy(update={"fusion": fusion})
    made = InputBank().network(Copies([], [own], nn.Identity()), banked, bank)
    assert isinstance(made, JoinedAtInput)
    return made


def batch(own: Shape, banked: list[Shape]) -> tuple[Tensor, list[Tensor]]:
    return torch.randn(2, *own), [torch.randn(2, *shape) for shape in banked]


@pytest.mark.parametrize("kind", FEATURES)
def test_training_begins_with_the_modules_features_alone(kind: str) -> None:
    own, banked = FEATURES[kind]
    joined = network(own, banked)
    x, bank = batch(own, banked)
    torch.testing.assert_close(joined(x, *bank), x)
    x.requires_grad_()
    joined(x, *bank).sum().backward()
    assert joined.mix is not None
    assert isinstance(joined.mix.weight, nn.Parameter)
    assert joined.mix.weight.grad is not None
    width = own[0] if kind == "maps" else own[-1]
    banks = torch.split(joined.mix.weight.grad.flatten(1).any(dim=0), width)
    assert len(banks) == 1 + len(banked)
    # after the first step, every banked tensor has an effect
    assert all(used.any() for used in banks)
    torch.testing.assert_close(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("kind", FEATURES)
def test_add_sums_the_modules_features_and_projections(kind: str) -> None:
    own, banked = FEATURES[kind]
    joined = network(own, banked, "add")
    x, bank = batch(own, banked)
    expected = x.clone()
    for projection, b in zip(joined.projections, bank, strict=True):
        assert isinstance(projection, nn.Conv2d | nn.Linear)
        assert projection.bias is not None
        weight = projection.weight.flatten(1)
        if kind == "maps":
            b = nn.AdaptiveAvgPool2d(own[1:])(b)
            values = torch.einsum("bchw,dc->bdhw", b, weight) + projection.bias[:, None, None]
        else:
            values = b @ weight.T + projection.bias
        expected = expected + values.clamp(min=0)
    torch.testing.assert_close(joined(x, *bank), expected)


def test_banked_maps_follow_the_size_of_evaluation_batches() -> None:
    joined = network((6, 3, 4), [(2, 6, 8)])
    x = torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(joined(x, torch.randn(1, 2, 10, 10)), x)


@pytest.mark.parametrize(
    ("own", "other"), [((6,), (2, 6, 8)), ((5, 6), (4, 6)), ((6, 3, 4), (5, 6))]
)
def test_features_of_another_kind_are_refused(own: Shape, other: Shape) -> None:
    with pytest.raises(ConfigError, match=r"^fba\.join=input: cannot join features .*join=head$"):
        network(own, [other])


def test_the_first_module_has_no_bank() -> None:
    copies = Copies([nn.ReLU()], [(6,), (6,)], nn.Identity())
    made = InputBank().network(copies, [], BANK)
    assert type(made) is CopiedNetwork
    x = torch.randn(2, 6)
    assert torch.equal(made(x), x.clamp(min=0))
