"""BatchNorm over replicas. Tests of replicas compare it with BatchNorm on whole batches."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ppll_cli.worker.synced_norm import synced

ALONE: Any = SimpleNamespace(add=lambda values: SimpleNamespace(wait=lambda: None))
"""One replica: the sum over all replicas is its own value."""


@pytest.mark.parametrize("momentum", [0.3, None], ids=["moving", "cumulative"])
def test_one_replica_computes_what_torch_computes(momentum: float | None) -> None:
    torchs, ours = nn.BatchNorm2d(3, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    layer = synced(ours, ALONE)
    for seed in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * (1 + seed)
        torch.testing.assert_close(layer(x), torchs(x))
    torch.testing.assert_close(layer.state_dict(), torchs.state_dict())
