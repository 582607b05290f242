"""The tensors in feature banks, and the networks that read them."""

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.config.sections import FeatureBank
from ppll_cli.errors import ConfigError
from ppll_cli.local.bank import Bank, FusedHead, FusedPictureHead, InputBank, JoinedAtInput
from ppll_cli.local.copies import CopiedNetwork, Copies
from ppll_cli.local.fba import bank_of
from ppll_cli.tasks.classification import Classification, ClassifierHead, Pool
from ppll_cli.tasks.picture_heads import PictureHead, Upsampler
from ppll_cli.tasks.super_resolution import SuperResolution
from ppll_cli.tasks.task import Shape, Task
from tests.other_task import OtherTask

TASK = Classification(3)
PICTURES = SuperResolution(scale=2, patch=8, mean=(0.4, 0.5, 0.6), overlap=4)


class _Head(ClassifierHead):
    """A head for features of width 4 and three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def pooled(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def test_add_sums_the_projected_bank_and_the_heads_own_vector() -> None:
    head = _Head()
    fused = FusedHead(head, [2, 5], FeatureBank(enabled=True, fusion="add"))
    x, banked = torch.randn(6, 4, 3, 3), [torch.randn(6, 2), torch.randn(6, 5)]
    vector = head.pooled(x)
    for projection, b in zip(fused.projections, banked, strict=True):
        vector = vector + projection(b).clamp(min=0)
    torch.testing.assert_close(fused(x, *banked), head.fc(vector))


@pytest.mark.parametrize("shared_head", [True, False])
def test_concatenate_joins_the_projected_bank_and_the_heads_own_vector(shared_head: bool) -> None:
    head = _Head()
    fused = FusedHead(head, [2, 5], FeatureBank(enabled=True, shared_head=shared_head))
    assert head.fc.in_features == (4 if shared_head else 12)
    x, banked = torch.randn(6, 4, 3, 3), [torch.randn(6, 2), torch.randn(6, 5)]
    projected = [p(b).clamp(min=0) for p, b in zip(fused.projections, banked, strict=True)]
    vector = torch.cat([head.pooled(x), *projected], dim=1)
    if shared_head:
        assert fused.mix is not None
        nn.init.normal_(fused.mix.weight)
        vector = fused.mix(vector)
    torch.testing.assert_close(fused(x, *banked), head.fc(vector))


def test_fusion_begins_with_the_head_alone() -> None:
    head = _Head()
    fused = FusedHead(head, [2, 5], FeatureBank(enabled=True))
    x, banked = torch.randn(6, 4, 3, 3), [torch.randn(6, 2), torch.randn(6, 5)]
    torch.testing.assert_close(fused(x, *banked), head(x))


def test_normalized_vectors_do_not_depend_on_the_scale_of_activations() -> None:
    head = _Head()
    plain, fused = (
        FusedHead(head, [8], FeatureBank(enabled=True, normalize=normalize))
        for normalize in (False, True)
    )
    x, banked = torch.randn(6, 4, 3, 3), torch.randn(6, 8)
    for network in (plain, fused):
        assert network.mix is not None
        nn.init.normal_(network.mix.weight)
    found = fused(x, banked)
    torch.testing.assert_close(fused(3 * x + 1, 100 * banked - 5), found, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain(3 * x + 1, 100 * banked - 5), plain(x, banked), atol=0.1)
    vectors = [head.pooled(x), banked]
    own, other = ((v - v.mean(1, True)) / v.std(1, correction=0, keepdim=True) for v in vectors)
    (projection,) = fused.projections
    assert fused.mix is not None
    expected = head.fc(fused.mix(torch.cat([own, projection(other).clamp(min=0)], dim=1)))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("task", [TASK, OtherTask()])
def test_the_bank_holds_pooled_vectors(task: Task) -> None:
    """The task may be a user's own."""
    x, form = torch.randn(2, 3, 4, 5), bank_of(task).form((3, 4, 5))
    assert form is not None
    assert torch.equal(form(x), Pool(3)(x))
    assert not list(form.parameters())


class _PictureHead(PictureHead):
    """A head that returns the map unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.upsampler = Upsampler(4, 2, PICTURES.mean)

    def mapped(self, x: Tensor) -> Tensor:
        return x


BANK = FeatureBank(enabled=True, features="every", fusion="concatenate", shared_head=True)


def bank_head(head: nn.Module, banked: list[Shape], bank: FeatureBank) -> nn.Module:
    """Return the head of an auxiliary network that has no copied units."""
    network = bank_of(PICTURES).network(Copies([], [(4, 5, 7)], head), banked, bank)
    assert isinstance(network, CopiedNetwork)
    return network.head


def test_a_concatenated_bank_begins_without_effect() -> None:
    head = _PictureHead()
    fused = bank_head(head, [(4, 5, 7), (6, 5, 7)], BANK)
    x = torch.rand(2, 4, 5, 7)
    bank = (torch.rand(2, 4, 5, 7), torch.rand(2, 6, 5, 7))
    torch.testing.assert_close(fused(x, *bank), head(x))
    fused(x, *bank).sum().backward()
    assert isinstance(fused, FusedPictureHead)
    assert fused.mix is not None
    assert fused.mix.weight.grad is not None
    assert fused.mix.weight.grad.all()


def test_an_added_bank_is_the_long_skip() -> None:
    """The result is Upsampler(SLM(x) + x_0). With equal channels there are no other parameters."""
    head = _PictureHead()
    fused = bank_head(head, [(4, 5, 7)], BANK.model_copy(update={"fusion": "add"}))
    x, first = torch.rand(2, 4, 5, 7), torch.rand(2, 4, 5, 7)
    torch.testing.assert_close(fused(x, first), head.upsampler(x + first))
    count = sum(parameter.numel() for parameter in head.parameters())
    assert sum(parameter.numel() for parameter in fused.parameters()) == count


def test_without_shared_head_the_upsampler_reads_the_concatenated_maps() -> None:
    fused = bank_head(_PictureHead(), [(4, 5, 7)], BANK.model_copy(update={"shared_head": False}))
    assert isinstance(fused, FusedPictureHead)
    assert fused.mix is None
    assert fused.head.upsampler.channels == 8
    x = torch.rand(2, 4, 5, 7)
    assert fused(x, x).shape == (2, 3, 10, 14)


def test_a_bank_of_maps_refuses_other_features_and_heads() -> None:
    with pytest.raises(ConfigError, match="fba=on: makes pictures from maps"):
        bank_of(PICTURES).form((16, 8))
    with pytest.raises(ConfigError, match=r"derive it from .*PictureHead, or use fba=off"):
        bank_head(nn.Identity(), [(4, 5, 7)], BANK)


def test_a_head_without_pooled_vectors_can_have_the_bank_at_the_input() -> None:
    """The heads of users' tasks are of other classes."""
    with pytest.raises(ConfigError, match=r"use fba\.join=input or fba=off$"):
        Bank().head(nn.Identity(), [(4,)], BANK)


JOINED = FeatureBank(enabled=True, features="every", fusion="concatenate", join="input")

FEATURES: dict[str, tuple[Shape, list[Shape]]] = {
    "maps": ((6, 3, 4), [(2, 6, 8), (3, 5, 7), (6, 3, 4)]),
    "tokens": ((5, 6), [(5, 6), (5, 4)]),
    "vectors": ((6,), [(3,), (8,)]),
}


def network(own: Shape, banked: list[Shape], fusion: str = "concatenate") -> JoinedAtInput:
    """Return a network without copied units and head.

    It returns the tensor that they would read.
    """
    bank = JOINED.model_copy(update={"fusion": fusion})
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
    made = InputBank().network(copies, [], JOINED)
    assert type(made) is CopiedNetwork
    x = torch.randn(2, 6)
    assert torch.equal(made(x), x.clamp(min=0))
