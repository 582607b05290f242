"""How a network is made ready for the device that trains it."""

import os
from contextlib import suppress

import torch
from torch import nn


def placed(network: nn.Module, device: torch.device, compiled: bool) -> nn.Module:
    """Move a network to its device, in the memory format and form in which it is to run there.

    Convolutions keep their maps channels last: they were 1.1 to 1.2 times faster so on CPU, from
    ResNet-18 to ResNet-50, and their weights' format is what decides. Nothing else has one.

    Args:
        network: Changed in place, and returned.
        device: Where to.
        compiled: By torch.compile, when it first runs and once for each shape; shapes are static.
    """
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled and any(True for _ in network.parameters()):
        network.compile(dynamic=False)
    return network


def prepare_compiler() -> None:
    """Have torch.compile work inside this process, for as many forms as a run can meet.

    A unit's code is shared by all units of its class: each has its own shapes, in training and in
    evaluation, for whole batches and for shorter last ones.
    """
    import torch._dynamo.config
    import torch._inductor.codecache
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = 256
    with suppress(AttributeError):
        torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._inductor.config.compile_threads = 1  # a pool would be processes that nobody watches
    # Headers go to torch's own folder in /tmp whatever its cache folder is, so they move as well.
    headers = os.path.join(os.environ["TORCHINDUCTOR_CACHE_DIR"], "precompiled_headers")
    for name, folder in (("_HEADER_DIR", headers), ("_HEADER_LOCK_DIR", f"{headers}/locks")):
        if hasattr(torch._inductor.codecache, name):
            setattr(torch._inductor.codecache, name, folder)
