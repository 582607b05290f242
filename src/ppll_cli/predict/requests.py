"""The functions that the measuring process runs for a profile."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppll_cli.job.placing import placed
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import LocalMethod, Site, module_criterion
from ppll_cli.models.unit import make_seeded
from ppll_cli.predict.chain import Saved, Setup, Work
from ppll_cli.predict.timing import (
    Stopwatch,
    batch_like,
    repeat,
    time_criterion,
    trained_and_frozen,
)


class UnitTimes(NamedTuple):
    """The time and memory of the units of a chain.

    Attributes:
        backward_s: Seconds of each unit's backward pass or, if it is split, of its half for inputs.
        step_s: Seconds of the optimizer's step for all units.
        params: Number of trained parameters of each unit.
        frozen_bytes: Bytes of each unit's parameters that are not trained.
        weight_s: Seconds of the half for parameters, for each unit; empty if no pass is split.
    """

    forward_s: list[float]
    backward_s: list[float]
    saved: list[Saved]
    step_s: float
    params: list[int]
    frozen_bytes: list[int]
    bytes_per_parameter: float
    weight_s: list[float]


def time_units(work: Work) -> UnitTimes:
    """Make a chain of units, and time its training steps."""
    chain = work.chain()
    saved = chain.saved_bytes()
    seconds = repeat(chain.step, chain.device)
    count = len(chain.units)
    backwards, each = seconds[count:-1], 2 if work.split else 1
    params, frozen_bytes = zip(*map(trained_and_frozen, chain.networks), strict=True)
    return UnitTimes(
        forward_s=seconds[:count],
        backward_s=backwards[::each][::-1],
        weight_s=backwards[1::2][::-1] if work.split else [],
        saved=saved,
        step_s=seconds[-1],
        params=list(params),
        frozen_bytes=list(frozen_bytes),
        bytes_per_parameter=chain.bytes_per_parameter(),
    )


def time_loss(
    setup: Setup,
    local: Mapping[str, Any],
    features: Sequence[ValueSpec],
    modules: Sequence[range],
    module: int,
    specs: Mapping[str, ValueSpec],
    with_gradient: frozenset[str],
) -> dict[str, float]:
    """Make a module's auxiliary network, and time it; see `time_criterion` for the result.

    Args:
        setup: How the model is built and measured.
        local: Configuration of the local method's class.
        features: Shape and dtype of the first output of each unit.
        modules: For each module, the indices of its units.
        module: Number of the module.
        specs: Shape (without the batch dimension) and dtype of each tensor that the loss may read.
        with_gradient: Names of the module's own tensors, which get gradients.
    """
    device, units = torch.device(setup.device), setup.units()
    method: LocalMethod = make_seeded("local", local, setup.seed)
    site = Site(module, tuple(modules), units, features, setup.input_spec, setup.task)
    criterion = module_criterion(method, site)
    placed(criterion, device, setup.compiled).train()

    def batch_of(name: str) -> Tensor:
        has_gradient = name in with_gradient
        values = batch_like(specs[name], setup.samples, device)
        if has_gradient and values.dim() == 4:  # feature maps are channels last
            values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(has_gradient and values.is_floating_point())

    values = {name: batch_of(name) for name in criterion.reads}
    return time_criterion(criterion, values, setup.task, setup.numerics)


def time_copy(size: int, source: str, target: str, by_host: bool) -> float:
    """Return the seconds that the ring transport needs to copy `size` bytes to another device.

    If `by_host` is True, the copy goes through pinned host memory. The result is then the time of
    both copies.
    """
    here, there = torch.device(source), torch.device(target)
    sent = torch.ones(size, dtype=torch.uint8, device=here)
    landed = torch.ones(size, dtype=torch.uint8, device=there)
    between = torch.ones(size, dtype=torch.uint8, pin_memory=True) if by_host else None

    def step() -> list[float]:
        watch = Stopwatch(here)
        watch.mark()
        (landed if between is None else between).copy_(sent, non_blocking=True)
        watch.mark()
        if between is not None:
            arriving = torch.cuda.current_stream(there)
            arriving.wait_stream(torch.cuda.current_stream(here))
            with torch.cuda.device(there):  # events of a stream must be recorded on its device
                watch.mark()
                landed.copy_(between, non_blocking=True)
                watch.mark()
        return [sum(watch.spans())]

    return repeat(step, here)[0]
