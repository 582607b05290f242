"""Times units, losses and transfers, in a process of its own (see `predict.profile`)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppll_cli.job.placing import placed
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.local.method import LocalMethod, module_criterion
from ppll_cli.models.unit import make_seeded
from ppll_cli.predict.chain import Chain, Setup, Work
from ppll_cli.predict.kept import Record
from ppll_cli.predict.timing import (
    Stopwatch,
    batch_like,
    repeat,
    time_criterion,
    trained_and_frozen,
)


def time_units(work: Work) -> tuple[list[Record], Record]:
    """Make a chain of units (see `Chain`), and time its training steps.

    Returns:
        A record for each unit, with the values of `predict.profile.Measured`. If `work.split` is
            set, a record has instead the seconds of the two halves of a backward pass: `input_s`
            for the gradients of the inputs, and `weight_s` for those of the parameters.
        A record of the optimizer, per element of the trained parameters: `step_s` has the seconds
            of a step, and `bytes` the size of an element with its gradient and optimizer state.
    """
    chain = Chain(work)
    saved = chain.saved_bytes()
    *seconds, step_s = repeat(chain.step, chain.device)
    count = len(chain.units)
    backwards = seconds[count:][::-1]  # from the first unit on
    sizes = [trained_and_frozen(network) for network in chain.networks]
    records: list[Record]
    if work.split:
        halves = zip(backwards[1::2], backwards[::2], strict=True)
        records = [{"input_s": input_s, "weight_s": weight_s} for input_s, weight_s in halves]
    else:
        records = [
            {"forward_s": forward_s, "backward_s": backward_s, **kept._asdict(), **size}
            for forward_s, backward_s, kept, size in zip(
                seconds[:count], backwards, saved, sizes, strict=True
            )
        ]
    trained = max(1, sum(size["params"] for size in sizes))
    return records, {"step_s": step_s / trained, "bytes": chain.bytes_per_parameter()}


def time_loss(
    setup: Setup, modules: tuple[range, ...], module: int, specs: Mapping[str, ValueSpec]
) -> Record:
    """Make a module's auxiliary network, and time it; see `time_criterion` for the result.

    Args:
        setup: How the model is built and measured.
        modules: For each module, the indices of its units.
        module: Number of the module.
        specs: Shape (without the batch dimension) and dtype of each tensor that the loss may read.
    """
    device, units = torch.device(setup.device), setup.units()
    method: LocalMethod = make_seeded("local", setup.local, setup.settings.seed)
    site = replace(setup.site, module=module, modules=modules, units=units)
    criterion = module_criterion(method, site)
    placed(criterion, device, setup.settings.compile).train()
    # As in training, the backward computes gradients of these tensors.
    written = {name for index in modules[module] for name in units[index].writes}

    def batch_of(name: str) -> Tensor:
        values = batch_like(specs[name], setup.samples, device)
        if name in written and values.dim() == 4:  # feature maps are channels last
            values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(name in written and values.is_floating_point())

    values = {name: batch_of(name) for name in criterion.reads}
    return time_criterion(criterion, values, site.task, setup.numerics)


def time_copy(size: int, source: str, target: str, by_host: bool) -> float:
    """Return the seconds that the ring transport needs to copy `size` bytes to another device.

    If `by_host` is True, the result is the time of two copies: to pinned host memory, and from it.
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
