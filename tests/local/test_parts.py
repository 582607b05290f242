"""Functions and layers that several local methods use."""

import pytest
import torch
from torch import nn

from ppll_cli.local.parts import AsMap, Probe, gram, map_shape


@pytest.mark.parametrize(
    ("tokens", "size"), [(16, (4, 4)), (17, (4, 4)), (7, (7, 1)), (1, (1, 1)), (2, (1, 1))]
)
def test_tokens_are_arranged_like_their_patches(tokens: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, tokens, 3)
    as_map = AsMap()(x)
    assert as_map.shape == (2, 3, *size)
    # a class token is added to each picture
    patches = x[:, 1:] + x[:, :1] if tokens in (17, 2) else x
    for patch in range(size[0] * size[1]):
        row, column = divmod(patch, size[1])
        assert torch.equal(as_map[:, :, row, column], patches[:, patch])


def test_vectors_are_maps_of_one_pixel() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(AsMap()(x)[:, :, 0, 0], x)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((3, 4, 5), (3, 4, 5)),
        ((16, 3), (3, 4, 4)),
        ((17, 3), (3, 4, 4)),
        ((7, 3), (3, 7, 1)),
        ((3,), (3, 1, 1)),
    ],
)
def test_map_shape_returns_the_shape_of_a_map(
    features: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert map_shape(features) == expected
    assert AsMap()(torch.empty(2, *features)).shape == (2, *expected)


def test_a_probe_trains_only_itself() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    linear = nn.Linear(3, 2)
    y = Probe(linear)(x)
    assert torch.equal(y, linear(x))
    y.sum().backward()
    assert x.grad is None
    assert linear.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_rows_are_exact_under_autocast(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 64).to(dtype)
    expected = [[sum((a * b).tolist()) for b in rows.double()] for a in rows.double()]
    with torch.autocast("cpu", torch.bfloat16):
        products = gram(rows)
    assert products.dtype == torch.float32
    torch.testing.assert_close(products, torch.tensor(expected), atol=1e-4, rtol=1e-5)
