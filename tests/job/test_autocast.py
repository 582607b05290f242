"""Operations that torch gets wrong under autocast to bfloat16 on CPU."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppll_cli.job.autocast import MendedOperations
from ppll_cli.job.numerics import Numerics

CPU = torch.device("cpu")
KERNELS = [(3, 2, 1), (5, 1, 2), (7, 2, 3), (3, 3, 1)]
"""Size, stride and padding of kernels of which torch 2.14 leaves gradients unset on some maps."""
SIZES = (1, 2, 4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("height", "width"), [*product(SIZES, SIZES)])
def test_elements_that_meet_only_padding_have_no_gradient(
    kernel: tuple[int, int, int], height: int, width: int
) -> None:
    size, stride, padding = kernel
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, height, width), torch.randn(8, 16, size, size)

    def gradient(precision: str) -> Tensor:
        leaf = weight.clone().requires_grad_()
        rubbish = [torch.full((50_000,), 1e12) for _ in range(20)]  # freed memory is used again
        del rubbish
        with Numerics(precision, False).autocast(CPU):
            loss = F.conv2d(x, leaf, stride=stride, padding=padding).float().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient("bf16"), gradient("fp32"), rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    ("layer", "shape", "in_float32"),
    [
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), (2, 4, 1, 1), True),
        (nn.Conv2d(4, 4, (1, 3), stride=(1, 2), padding=(0, 1)), (2, 4, 8, 1), True),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), (2, 4, 2, 2), True),
        (nn.Conv2d(4, 4, 5, padding="same", bias=False), (2, 4, 8, 2), True),
        (nn.Conv1d(4, 4, 3, padding=1), (2, 4, 1), True),
        (nn.Conv3d(4, 4, 3, padding=1), (2, 4, 4, 4, 1), True),
        (nn.Conv2d(4, 4, 3, padding=1), (4, 1, 1), True),  # without a batch
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), (2, 4, 2, 2), True),
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), (2, 4, 3, 3), False),
        (nn.Conv2d(4, 4, 3, padding="valid"), (2, 4, 3, 3), False),
        (nn.Conv2d(4, 4, 1, stride=2), (2, 4, 1, 1), False),
        (nn.Linear(4, 4), (2, 4), False),
    ],
)
def test_only_such_convolutions_are_computed_in_float32(
    layer: Any, shape: tuple[int, ...], in_float32: bool
) -> None:
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
        with MendedOperations():
            found = layer(x)
    assert found.dtype == rounded.dtype == torch.bfloat16
    exact = layer(x).to(torch.bfloat16)
    assert torch.equal(found, exact if in_float32 else rounded)
    torch.testing.assert_close(found, rounded, rtol=0.05, atol=0.05)


def test_without_autocast_nothing_changes() -> None:
    layer, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 1, 1)
    with MendedOperations():
        assert torch.equal(layer(x), layer(x.clone()))
        assert layer(x).dtype == torch.float32


def test_arguments_may_be_named() -> None:
    x, weight = torch.randn(2, 4, 1, 1), torch.randn(4, 4, 3, 3)
    with Numerics("bf16", False).autocast(CPU):
        named = F.conv2d(input=x, weight=weight, padding=1)
        placed = F.conv2d(x, weight, None, 1, 1)
    assert torch.equal(named, placed)


def test_a_kernel_larger_than_the_input_is_reported_by_torch() -> None:
    with (
        Numerics("bf16", False).autocast(CPU),
        pytest.raises(RuntimeError, match="Kernel size can't be greater"),
    ):
        F.conv2d(torch.randn(1, 1, 1, 1), torch.randn(1, 1, 3, 3))


def test_a_bilinear_layer_is_computed_in_float32_as_on_cuda() -> None:
    """On CPU, torch's autocast once let it fail: its inputs were bfloat16, its weight float32."""
    torch.manual_seed(0)
    before, layer, x = nn.Linear(4, 4), nn.Bilinear(4, 4, 3), torch.randn(5, 4)
    with Numerics("bf16", False).autocast(CPU):
        y = before(x)
        found = layer(y, x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(found, layer(y.float(), x))
    found.sum().backward()
    gradients = [p.grad for p in (*before.parameters(), *layer.parameters())]
    assert all(each is not None and each.any() for each in gradients)
