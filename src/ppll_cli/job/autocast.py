"""Works around faults of torch's autocast to bfloat16 on CPU."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
"""Number of spatial dimensions of each of torch's convolutions."""


class MendedOperations(TorchFunctionMode):
    """Computes in float32 the operations that torch gets wrong under CPU autocast.

    These are `torch.bilinear`, and convolutions in which an element of the kernel is multiplied
    only by padding.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # `torch.bilinear` fails if some arguments are bfloat16 and others, such as the weight, are
        # float32. Under CUDA autocast, torch itself computes `torch.bilinear` in float32.
        named = kwargs or {}
        dimensions = CONVOLUTIONS.get(func)
        if (
            (dimensions is None and func is not torch.bilinear)
            or not torch.is_autocast_enabled("cpu")  # an inner block may have turned it off
            or (dimensions is not None and _meets_whole_kernel(dimensions, *args, **named))
        ):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            found: Tensor = func(*map(_float, args), **{k: _float(v) for k, v in named.items()})
        return found if dimensions is None else found.to(torch.get_autocast_dtype("cpu"))


def mended_operations() -> AbstractContextManager[object]:
    """Return `MendedOperations()` under CPU autocast, else a context manager that does nothing."""
    return MendedOperations() if torch.is_autocast_enabled("cpu") else nullcontext()


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _meets_whole_kernel(
    dimensions: int,
    input: Tensor,  # noqa: A002 (the name in torch)
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> bool:
    # If a kernel element is multiplied only by padding, its gradient should be 0. But on processors
    # with bfloat16 instructions, torch 2.14 does not write this part of the gradient, so its values
    # are arbitrary. An example is a kernel of width 3 with stride 2 and padding 1 on a feature map
    # of width 1, as in the last levels of RetinaNet's pyramid.
    sizes = zip(
        input.shape[-dimensions:],
        weight.shape[-dimensions:],
        _each(stride, dimensions),
        _each(padding, dimensions),
        _each(dilation, dimensions),
        strict=True,
    )
    for size, kernel, step, pad, spread in sizes:
        reach = spread * (kernel - 1)
        before = {"valid": 0, "same": reach // 2}.get(pad, pad) if isinstance(pad, str) else pad
        after = reach - before if pad == "same" else before
        starts = range(-before, size + after - reach, step)
        offsets = range(0, reach + 1, spread)
        # `starts` is empty if the input is too small for the kernel; torch then raises an error.
        if starts and not all(any(0 <= at + start < size for start in starts) for at in offsets):
            return False
    return True


def _each(value: Any, dimensions: int) -> Sequence[Any]:
    if isinstance(value, int | str):
        return [value] * dimensions
    return value if len(value) == dimensions else list(value) * dimensions
