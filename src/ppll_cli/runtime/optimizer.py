"""The optimizer of a group of parameters."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ppll_cli.settings import Optim


def make_optimizer(optim: Optim, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD or AdamW as configured. What it does to a parameter depends on that parameter alone."""
    if optim.name == "adamw":
        b1, b2 = optim.betas
        return torch.optim.AdamW(
            parameters, optim.lr, (b1, b2), weight_decay=optim.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters,
        optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def squared_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The squared norm of all gradients together, a float64 scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).double().square()


def clip(parameters: Sequence[nn.Parameter], limit: float, squared: Tensor) -> None:
    """Scale gradients so that the norm, given as its square, is at most `limit`."""
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, squared.sqrt().float())
