"""BatchNorm over the replicas of a stage, normalising by the statistics of the whole batch.

Gradients flow through the statistics to the samples of all replicas.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppll_cli.transport.replicas import Replicas


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, replicas: Replicas) -> Tensor:
        context.replicas = replicas
        total = values.clone()
        replicas.add(total).wait()
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        total = gradient.clone()
        context.replicas.add(total).wait()
        return total, None


# torch's `SyncBatchNorm` needs CUDA. Also, it gives the gradients of all replicas equal weight;
# here, a replica's loss is weighted by the replica's share of the batch.
class SyncedBatchNorm(_BatchNorm):
    """A BatchNorm layer that, in training, normalises by statistics of all replicas' samples."""

    replicas: Replicas

    @classmethod
    def of(cls, layer: _BatchNorm, replicas: Replicas) -> "SyncedBatchNorm":
        """Return a layer that shares the parameters, buffers and settings of `layer`."""
        made = cls.__new__(cls)
        made.__dict__ = layer.__dict__
        made.replicas = replicas
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of `x` [B, C, ...] by its mean and variance over all replicas.

        Outside training, compute the same as torch's layer.
        """
        if not self.training:
            return super().forward(x)
        values = x.float()
        others = [0, *range(2, x.dim())]
        channels = (1, -1, *[1] * (x.dim() - 2))
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = self._sum(torch.cat([values.sum(others), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(channels)
        variance = self._sum(centred.square().sum(others)) / count
        self._update_running(mean.detach(), variance.detach() * count / (count - 1))
        made = centred * (variance + self.eps).rsqrt().view(channels)
        if self.affine:
            made = made * self.weight.view(channels) + self.bias.view(channels)
        return made.to(x.dtype)

    def _sum(self, values: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(values, self.replicas)
        return total

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        part = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance, part)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        pass  # the original layer checked the shapes before the run


def synced(network: nn.Module, replicas: Replicas) -> nn.Module:
    """Replace all BatchNorm layers of a network, in place, by `SyncedBatchNorm` layers.

    Return the network or, if it is itself a BatchNorm layer, the layer that replaces it.
    """
    if isinstance(network, _BatchNorm):
        return SyncedBatchNorm.of(network, replicas)
    for name, child in network.named_children():
        setattr(network, name, synced(child, replicas))
    return network
