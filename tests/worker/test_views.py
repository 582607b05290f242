"""The gradient of a unit's output has the strides of the output."""

import torch
from torch import Tensor

from ppll_cli.worker.views import as_received, without_aliases


def test_an_expanded_gradient_is_made_dense() -> None:
    """As after a sum. Another stage would receive it dense, and kernels round differently."""
    x = torch.zeros(2, 3, requires_grad=True)
    found: list[tuple[int, ...]] = []
    y = x * 1

    def note(gradient: Tensor) -> None:
        found.append(gradient.stride())

    y.register_hook(note)  # type: ignore[no-untyped-call]
    as_received(y, gradient=True).register_hook(note)  # type: ignore[no-untyped-call]
    torch.autograd.backward(y.sum())
    assert found == [(0, 0), (3, 1)]


def test_an_output_without_gradient_beside_one_with_gradient_is_left_alone() -> None:
    """Torch calls the hooks of both, with None for the first."""
    first, second = torch.split(torch.zeros(2, 3, requires_grad=True) * 1, 1)
    for part in (first, second):
        as_received(part, gradient=True)
    torch.autograd.backward(second.sum())


def test_two_names_of_a_tensor_have_gradients_of_their_own() -> None:
    x = torch.zeros(2, requires_grad=True)
    y, ids = x * 1, torch.arange(2)
    found = without_aliases({"new": y, "again": y, "renamed": x, "ids": ids}, [x, ids])
    assert found["new"] is y
    assert found["ids"] is ids  # it has no gradient
    assert found["again"] is not y
    assert found["renamed"] is not x
    torch.autograd.backward((found["again"] + 2 * found["renamed"]).sum())
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]


def test_a_slice_is_copied() -> None:
    whole = torch.arange(6.0).view(2, 3)
    assert as_received(whole, gradient=False) is whole
    found = as_received(whole[:, ::2], gradient=False)
    assert found.stride() == (2, 1)
    assert found.tolist() == [[0, 2], [3, 5]]
