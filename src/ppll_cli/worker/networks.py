"""Makes the networks of a chunk, and their optimizer."""

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ppll_cli import seeding
from ppll_cli.job.job import Job
from ppll_cli.job.optimizer import FusedOptimizer
from ppll_cli.job.placing import placed
from ppll_cli.leaves.random_states import seeded
from ppll_cli.local.method import Criterion, Site, module_criterion, module_exports
from ppll_cli.models.unit import Unit, build_unit, make_seeded
from ppll_cli.pipeline.layout import Chunk
from ppll_cli.transport.averages import Average
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.ema import Ema
from ppll_cli.worker.nonfinite import NonFinite
from ppll_cli.worker.synced_norm import synced
from ppll_cli.worker.versions import watched_versions

log = logging.getLogger(__name__)

UNTRAINED = (
    "the loss of module %d does not train the module's units, because the loss depends on no "
    "output of these units that has a gradient: if this is not intended, look for detach(), "
    "no_grad() and integer tensors in the units and in the loss"
)


class Networks:
    """The networks of a chunk, initialized from the run's seed.

    Args:
        place: The chunk: its units, and the module to which they belong.
        site: Describes the model; may be the `Site` of any module.
        replicas: The replicas of the stage; None if the stage has only one worker.

    Attributes:
        units: The units and their networks, in order.
        exports: The module's exports and their networks; empty if no module ends here.
        criterion: The module's loss with its auxiliary network; None if no module ends here.
        optimizer: The optimizer of all parameters; None if there are no parameters.
        versions: Recent weights of those units that the losses of earlier modules read, by the
            unit's index in the model.
        ema: Averages of the units' weights; None if the run keeps none.
        averaged: Whether the units compute with the averages in `ema` now.
        nonfinite: Stops the run or skips a step if a loss or a gradient norm is not finite.
        average: Averages the gradients over the replicas; None if the stage has only one worker.
        squared_norm: Squared gradient norm at the last step, before clipping: of the chunk under
            local learning, otherwise of the model. A scalar on the device; None if not needed.
    """

    def __init__(
        self,
        job: Job,
        place: Chunk,
        site: Site,
        device: torch.device,
        replicas: Replicas | None = None,
    ) -> None:
        self.job, self.place, self.device = job, place, device
        settings, seed = job.settings, job.settings.seed
        units = [site.units[index] for index in place.units]
        self.units = [(unit, build_unit(unit, seed)) for unit in units]
        self.exports: list[tuple[Unit, nn.Module]] = []
        self.criterion: Criterion | None = None
        if place.ends_module:
            method, site = make_seeded("local", job.local, seed), site.at(place.module)
            with seeded(seeding.auxiliary_weights(seed, place.module)):
                self.exports = [(u, build_unit(u, seed)) for u in module_exports(method, site)]
                self.criterion = module_criterion(method, site)
        if settings.sync_batchnorm and replicas is not None:
            self.units = [(unit, synced(network, replicas)) for unit, network in self.units]
            if self.criterion is not None:
                synced(self.criterion, replicas)
        for network in self.networks:
            placed(network, device, settings.compile)
        optim = settings.optim
        self.optimizer = FusedOptimizer(optim, self.parameters) if self.parameters else None
        self.ema = None if optim.ema is None else Ema(self.units, optim.ema)
        self.averaged = False
        self.nonfinite = NonFinite(optim.nonfinite == "skip", place, device)
        self.squared_norm: Tensor | None = None
        self._told = False
        self.average: Average | None = None
        if replicas is not None:
            early = not settings.sync_batchnorm
            self.average = Average(replicas, self.learnt, lambda: self.nonfinite.found, early)
        by_index = dict(zip(place.units, self.units, strict=True))
        self.versions = watched_versions(job.routes.watches.values(), by_index)

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of the units and exports, and the criterion."""
        criterion = [] if self.criterion is None else [self.criterion]
        return [network for _, network in (*self.units, *self.exports)] + criterion

    @cached_property  # because collecting the parameters takes longer than many kernels
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of all networks; one that two networks share is listed twice."""
        return [p for network in self.networks for p in network.parameters()]

    @cached_property
    def unit_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit."""
        return [list(network.parameters()) for _, network in self.units]

    @cached_property
    def unit_weights(self) -> list[nn.Parameter]:
        """The units' parameters that require gradients. Two units cannot share a parameter."""
        return [p for own in self.unit_parameters for p in own if p.requires_grad]

    @property
    def unit_state(self) -> list[Tensor]:
        """The units' parameters and buffers."""
        # Not cached: a network may replace its buffers.
        buffers = (buffer for _, network in self.units for buffer in network.buffers())
        return [*chain.from_iterable(self.unit_parameters), *buffers]

    @property
    def learnt(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit, then those of the criterion."""
        criterion = [] if self.criterion is None else [[*self.criterion.parameters()]]
        return self.unit_parameters + criterion

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers of all networks and of `ema`, such as BatchNorm's running statistics."""
        averages = [] if self.ema is None else self.ema.buffers
        return [buffer for network in self.networks for buffer in network.buffers()] + averages

    @property
    def memories(self) -> list[Tensor]:
        """Buffers that training may read: all except those of BatchNorm and InstanceNorm layers."""
        return [buffer for layer in self._remembering for buffer in layer.buffers(recurse=False)]

    @cached_property
    def _remembering(self) -> list[nn.Module]:
        layers = chain.from_iterable(network.modules() for network in self.networks)
        own = [layer for layer in layers if any(True for _ in layer.buffers(recurse=False))]
        return [layer for layer in own if not isinstance(layer, _NormBase)]

    @cached_property
    def auxiliary(self) -> bool:
        """Whether the chunk has an auxiliary network."""
        return self.criterion is not None and any(True for _ in self.criterion.parameters())

    def is_trained_by(self, loss: Tensor) -> bool:
        """Return whether a loss requires gradients, so that its backward is possible.

        Raises:
            RuntimeError: The loss requires no gradients, although some parameters do.
        """
        if not loss.requires_grad and any(p.requires_grad for p in self.parameters):
            raise RuntimeError(
                f"the loss of module {self.place.module} depends on none of the parameters: look "
                "for detach() and no_grad() in the networks and the loss, or freeze all parameters "
                "by requires_grad_(False)"
            )
        return loss.requires_grad

    def tell_if_untrained(self, outputs: Collection[str], gradients: Collection[str]) -> None:
        """Warn, only once, if the module's loss does not train the chunk's units.

        Args:
            outputs: Names of the chunk's outputs that require gradients.
            gradients: Names of the outputs that got a gradient from the loss.
        """
        if (outputs or self.unit_weights) and not gradients and not self._told:
            self._told = True
            log.warning(UNTRAINED, self.place.module)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context manager in which to run forward passes and losses."""
        return self.job.numerics.autocast(self.device)

    def use_averages(self, averaged: bool) -> None:
        """Let the units compute with the averages in `ema`, or again with the trained weights.

        Do nothing if the run keeps no averages.
        """
        if self.ema is not None and averaged != self.averaged:
            self.ema.swap()
            self.averaged = averaged

    def start_average(self) -> None:
        """Prepare to average gradients over the replicas, before the batch's last backward."""
        assert self.average is not None
        self.average.start()

    def finish_average(self) -> None:
        """Wait for the averages, and replace the gradients by them."""
        assert self.average is not None
        self.nonfinite.found |= self.average.finish()

    def complete_average(self) -> None:
        """Start averaging the prepared gradients whose average has not begun during the backward.

        Call this after each backward. It does nothing if `start_average` was not called before.
        """
        if self.average is not None:
            self.average.complete()
