"""Makes the contenders that `scripts/benchmark schedules` compares."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hydra import initialize_config_dir
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from ppll_cli.config import settings
from ppll_cli.config.composition import composed, register_resolvers
from ppll_cli.config.options import conf_dir
from ppll_cli.config.settings import Settings, usable_cores
from ppll_cli.config.targets import make
from ppll_cli.job.job import Job
from ppll_cli.launch.wiring import fitting
from ppll_cli.prepare.preparation import Prepared, prepare
from ppll_cli.transport.channel import Transport
from scripts.benchmarks.paced import EPOCH, Workers, pipeline
from scripts.benchmarks.ranks import MakeTrainer, Ranks
from scripts.benchmarks.torch_trainers import DataParallelTrainer, PipelineTrainer
from scripts.benchmarks.unlinked import InTurn, unlinked

BATCH_SIZE = 64
COMMON = [
    "data=synthetic",
    f"data.train_samples={EPOCH * BATCH_SIZE}",
    "data.test_samples=1",
    f"log_every={EPOCH}",
]
COMMON += [f"batch_size={BATCH_SIZE}", "threads=1", "oversubscribe=true", "seed=0"]
COMMON += ["optim.schedule=constant", "optim.warmup_epochs=0", "epochs=1000"]
MODELS = {
    "vit": ["model=vit", "optim=adamw", "optim.lr=1e-3"],
    "resnet32": ["model=resnet32", "optim=sgd", "optim.lr=0.01"],
}
OURS = {
    "ppll": ["schedule=ppll", "partition=profile"],
    "ppll_recover": ["schedule=ppll", "partition=profile", "recover=stage"],
    "ppll_queue": ["schedule=ppll", "partition=profile", "transport=queue"],
    "ll": ["schedule=ll", "partition=uniform"],
    "gpipe_m4": ["schedule=gpipe", "partition=profile", "schedule.microbatches=4"],
    "gpipe_m8": ["schedule=gpipe", "partition=profile", "schedule.microbatches=8"],
    "1f1b_m4": ["schedule=1f1b", "partition=profile", "schedule.microbatches=4"],
    "1f1b_m8": ["schedule=1f1b", "partition=profile", "schedule.microbatches=8"],
    "interleaved_m4": ["schedule=interleaved", "partition=profile", "schedule.microbatches=4"],
    "zb_h1_m4": ["schedule=zb_h1", "partition=profile", "schedule.microbatches=4"],
    "pp": ["schedule=pp", "partition=profile"],
    "bp": ["schedule=bp", "partition=uniform"],
    "bp_all_threads": ["schedule=bp", "partition=uniform", f"threads={usable_cores()}"],
    "bp_replicas": ["schedule=bp", "partition=uniform"],
}
"""Overrides of this program's rows, by name."""

TORCH: dict[str, tuple[str, MakeTrainer]] = {
    "torch_gpipe_m4": ("gpipe_m4", partial(PipelineTrainer, ScheduleGPipe)),
    "torch_gpipe_m8": ("gpipe_m8", partial(PipelineTrainer, ScheduleGPipe)),
    "torch_1f1b_m4": ("1f1b_m4", partial(PipelineTrainer, Schedule1F1B)),
    "torch_1f1b_m8": ("1f1b_m8", partial(PipelineTrainer, Schedule1F1B)),
    "torch_interleaved_m4": ("interleaved_m4", partial(PipelineTrainer, ScheduleInterleaved1F1B)),
    "torch_zero_bubble_m4": (  # orders the halves of backward passes as ZB-H1 does
        "interleaved_m4",
        partial(PipelineTrainer, ScheduleInterleavedZeroBubble),
    ),
    "ddp": ("bp", DataParallelTrainer),
}
"""For each row of torch: the row of `OURS` that has the same stages and batches, and a function
that makes the trainer of a rank."""

UNLINKED: dict[str, type[Workers]] = {"bound": Workers, "bound_in_turn": InTurn}
"""Rows that train the stages of `ppll` without channels, each with the class that measures it."""

LONG = (
    *("ppll", "ppll_recover", "bound", "bound_in_turn", "ll", "ppll_queue"),
    *("torch_gpipe_m4", "gpipe_m4", "1f1b_m4", "torch_1f1b_m4"),
    *("torch_gpipe_m8", "gpipe_m8", "1f1b_m8", "torch_1f1b_m8"),
    *("interleaved_m4", "torch_interleaved_m4", "zb_h1_m4", "torch_zero_bubble_m4"),
    *("pp", "ddp", "bp_replicas", "bp", "bp_all_threads"),
)
"""All rows. Rows that are compared with each other are measured shortly after one another."""

SHORT = tuple(name for name in LONG if name not in ("torch_gpipe_m8", "torch_1f1b_m8"))


Contender = Workers | Ranks
"""Processes that train when they are told to, and are idle otherwise."""


class Case:
    """A model on a number of stages.

    Args:
        model: Key of `MODELS`.
        gpus: Number of stages.
        overrides: Further overrides for all contenders.
    """

    def __init__(self, model: str, gpus: int, overrides: Sequence[str]) -> None:
        self.model, self.gpus = model, gpus
        self.overrides = [*COMMON, *MODELS[model], f"gpus={gpus}", *overrides]
        self._prepared: dict[str, tuple[Settings, Prepared]] = {}

    def prepared(self, name: str) -> tuple[Settings, Prepared]:
        """Return the settings and the prepared job of a row of `OURS`."""
        if name not in self._prepared:
            own = [*OURS[name], *self._modules(name)]
            if name == "bp_replicas":  # one replica per device
                own.append(f"replicas={self.gpus}")
            parsed = compose_settings([*self.overrides, *own])
            self._prepared[name] = parsed, prepare(parsed, run_dir="")
        return self._prepared[name]

    def job(self, name: str) -> Job:
        """Return the job of a row of `OURS`."""
        return self.prepared(name)[1].job

    def contenders(self, names: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
        """Return contenders for those of these rows that can be measured here.

        Also return, for each row that cannot be measured, the reason.
        """
        skipped = {name: reason for name in names if (reason := self._obstacle(name))}
        return [self._contender(name) for name in names if name not in skipped], skipped

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the stages."""
        return self.job("ppll").devices

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Return facts about this program's rows for the result file."""
        ours = [name for name in names if name in OURS]
        units = {name: self.prepared(name)[1].job.names for name in ours}
        return {
            "stages": {
                name: [
                    [units[name][i] for i in self.job(name).layout.units(stage)]
                    for stage in range(self.job(name).stages)
                ]
                for name in ours
            },
            "transport": {name: type(self._transport(name)).__name__ for name in ours},
            "devices": list(self.devices),
            "emulated": self.prepared("ppll")[1].emulated,
        }

    def _obstacle(self, name: str) -> str | None:
        on_gpus, batch_size = self.devices[0] != "cpu", self.job("ppll").course.batch_size
        if name == "bp_all_threads" and on_gpus:
            return "this row is for CPUs"
        if name == "ppll_recover" and on_gpus:
            return "on GPUs recover=stage needs deterministic=true, which no other row has"
        if name in TORCH and on_gpus and len(set(self.devices)) < self.gpus:
            return "NCCL refuses two ranks on one GPU"
        if name == "ddp" and batch_size % self.gpus:
            return f"a batch of {batch_size} cannot be shared evenly by {self.gpus} ranks"
        if name == "torch_zero_bubble_m4" and len(self.job("ppll").features[0].shape) == 3:
            return "torch's split backward fails for views, and feature maps are sent as views"
        return None

    def _contender(self, name: str) -> Contender:
        if name in UNLINKED:
            return unlinked(name, self.job("ppll"), UNLINKED[name])
        if name in TORCH:
            like, make_trainer = TORCH[name]
            return Ranks(name, replace(self.job(like), devices=self.devices), make_trainer)
        return pipeline(name, self.job(name), self._transport(name))

    def _modules(self, name: str) -> list[str]:
        # Return the overrides that give `ll` the modules of `ppll`; none for other rows.
        if name != "ll":
            return []
        return [f"local.cuts=[{','.join(self.prepared('ppll')[1].cuts)}]"]

    def _transport(self, name: str) -> Transport:
        asked = self.prepared(name)[0].transport
        return fitting(asked["_target_"], make("transport", asked), self.job(name), machine=0)


def compose_settings(overrides: Sequence[str]) -> Settings:
    """Return the settings for overrides, as if given on the command line."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config, _ = composed(overrides)
    return settings.parse(config)
