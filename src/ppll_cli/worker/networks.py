"""The networks of a chunk: its units, the criterion of a module's end, and their optimizer."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from ppll_cli import seeding
from ppll_cli.config.targets import make
from ppll_cli.job.job import Job
from ppll_cli.job.optimizer import FusedOptimizer
from ppll_cli.job.placing import placed
from ppll_cli.local.method import Criterion, Site, module_criterion, module_exports
from ppll_cli.models.unit import Unit, build_unit
from ppll_cli.pipeline.layout import Chunk
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.ema import Ema
from ppll_cli.worker.synced_norm import synced
from ppll_cli.worker.versions import Versions


class Networks:
    """The networks of a chunk, initialized from the run's seed.

    Lists of parameters are cached, because networks keep their parameters and collecting them takes
    longer than many kernels.

    Args:
        job: The run.
        place: The chunk: its units and its module.
        site: Where auxiliary networks are attached; its module number is ignored.
        device: The device that computes.
        replicas: The workers that hold the same stage; None if the stage has only one.

    Attributes:
        place: The chunk: its units and its module.
        units: The units and their networks, in order.
        exports: Units that make values for later modules' losses, with their networks.
        criterion: The loss at a module's end, whose parameters are the auxiliary network; None if
            no module ends here.
        optimizer: Steps all parameters; None if there are none.
        versions: The last weights of each unit that losses watch, by the unit's index.
        ema: Averages of the units' weights; None if the run keeps none.
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
        units = [site.units[index] for index in self.place.units]
        self.units = [(unit, build_unit(unit, seed)) for unit in units]
        self.exports: list[tuple[Unit, nn.Module]] = []
        self.criterion: Criterion | None = None
        if self.place.ends_module:
            method, site = make("local", job.local), site.at(self.place.module)
            self.exports = [(u, build_unit(u, seed)) for u in module_exports(method, site)]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeding.auxiliary_weights(seed, self.place.module))
                self.criterion = module_criterion(method, site)
        if settings.sync_batchnorm and replicas is not None:
            self.units = [(unit, synced(network, replicas)) for unit, network in self.units]
            if self.criterion is not None:
                synced(self.criterion, replicas)
        for network in self.networks:
            placed(network, self.device, settings.compile)
        optim = settings.optim
        self.optimizer = FusedOptimizer(optim, self.parameters) if self.parameters else None
        self.ema = None if optim.ema is None else Ema(self.units, optim.ema)
        self.versions: dict[int, Versions] = {}
        for index, (unit, network) in zip(self.place.units, self.units, strict=True):
            lags = [watch.lag for watch in job.routes.watches.values() if watch.unit == index]
            if lags:
                self.versions[index] = Versions(unit.name, network, max(lags))

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of the units and exports, and the criterion."""
        criterion = [] if self.criterion is None else [self.criterion]
        return [network for _, network in (*self.units, *self.exports)] + criterion

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of all networks; a parameter that two networks share is listed twice."""
        return [p for network in self.networks for p in network.parameters()]

    @cached_property
    def unit_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit."""
        return [list(network.parameters()) for _, network in self.units]

    @cached_property
    def _weights(self) -> list[nn.Parameter]:
        """The parameters of all units that require gradients, each once."""
        found = [p for own in self.unit_parameters for p in own if p.requires_grad]
        return list(dict.fromkeys(found))

    @property
    def learnt(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit and of the criterion. Exports get no gradients."""
        criterion = [] if self.criterion is None else [self.criterion]
        networks = [network for _, network in self.units] + criterion
        return [list(network.parameters()) for network in networks]

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers of all networks, such as BatchNorm's running statistics, and their averages."""
        averages = [] if self.ema is None else self.ema.buffers
        return [buffer for network in self.networks for buffer in network.buffers()] + averages

    @cached_property
    def auxiliary(self) -> bool:
        """Whether the chunk has an auxiliary network."""
        return self.criterion is not None and any(True for _ in self.criterion.parameters())

    def named_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the networks that a checkpoint holds, with their names in it."""
        for unit, network in self.units:
            yield f"model.{unit.name}", network
        if self.criterion is not None:
            yield f"auxiliary.{self.place.module}", self.criterion
