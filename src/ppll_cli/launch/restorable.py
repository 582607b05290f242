"""Check that a run can resume from a checkpoint, before any worker is started."""

from collections.abc import Iterator

import torch
from torch import nn

from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from ppll_cli.job.checkpoint import EMA, Checkpoint, SavedTensors
from ppll_cli.job.job import Job
from ppll_cli.local.method import LocalMethod, module_criterion
from ppll_cli.worker.versions import saved_name


def check_restorable(job: Job, start: Checkpoint) -> None:
    """Refuse a checkpoint whose tensors do not fit the networks that this version builds.

    Raises:
        ConfigError: A tensor is missing, or has another shape.
    """
    model, method = make("model", job.settings.model), make("local", job.local)
    with SavedTensors(start.folder) as saved:
        known = {name: saved.shape(name) for name in saved.names}
    for key, shape in _needed(job, method):
        if known.get(key) == shape:
            continue
        there = f"has shape {list(known[key])}" if key in known else "is missing"
        problem = (
            f"it cannot be resumed: {key} {there} in its checkpoint, but this version needs shape "
            f"{list(shape)}"
        )
        auxiliary = key.startswith("auxiliary.")
        if reason := getattr(method if auxiliary else model, "changed", ""):
            other = "auxiliary networks differ" if auxiliary else "model differs"
            problem = f"it cannot be resumed, because this version's {other}: {reason}"
        raise ConfigError("resume", job.run_dir, problem, "start a new run")


def _needed(job: Job, method: LocalMethod) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each tensor that a checkpoint must hold."""
    for prefix, network in _networks(job, method):
        kind, _, owner = prefix.partition(".")
        averaged = job.settings.optim.ema is not None and kind == "model"
        for name, tensor in network.state_dict().items():
            yield f"{prefix}.{name}", tuple(tensor.shape)
            if averaged and tensor.is_floating_point():
                yield f"{EMA}{owner}.{name}", tuple(tensor.shape)
    for watch in job.routes.watches.values():
        unit = job.watched[watch.unit]
        for age in range(1, watch.lag):
            for name, spec in unit.specs.items():
                yield saved_name(unit.name, age, name), spec.shape


def _networks(job: Job, method: LocalMethod) -> Iterator[tuple[str, nn.Module]]:
    """Yield all units and criteria on the meta device, with the prefix of their tensors' names."""
    site = job.site(job.units())
    with torch.device("meta"):
        for unit in site.units:
            yield f"model.{unit.name}", unit.build()
        for module in range(len(job.layout.modules)):
            yield f"auxiliary.{module}", module_criterion(method, site.at(module))
