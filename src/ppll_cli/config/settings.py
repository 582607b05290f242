"""The typed configuration, and all checks that need no model and no data. Imports no torch."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from ppll_cli.config.options import as_typed
from ppll_cli.config.sections import (
    CheckpointSettings,
    FeatureBank,
    Optim,
    Partition,
    Recover,
    Section,
)
from ppll_cli.config.targets import checked, refusal
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Count, Fraction, Positive
from ppll_cli.leaves.machine import core_quota
from ppll_cli.leaves.names import meant

Workers = Annotated[int, Field(ge=1, le=4096)]
"""Type of a number of workers or of threads."""

Group = dict[str, Any]

LONGEST_WORD = 100
"""Largest number of characters of a tag, and of a run's name, which becomes part of a folder's
name.
"""


def _word(value: str) -> str:
    if not re.fullmatch(r"\w[\w.+=@-]*", value) or len(value) > LONGEST_WORD:
        raise ValueError(
            f"must be at most {LONGEST_WORD} letters, digits or characters of _ . + = @ -, and "
            "begin with a letter, a digit or _"
        )
    return value


Word = Annotated[str, AfterValidator(_word)]

Slots = Annotated[int, Field(ge=1, le=1024)]
"""Type of `transport.depth`: slots of each channel in addition to those that the schedule needs. A
prediction simulates more batches if channels have more slots, so the number is limited.
"""


PROBABILITIES = {"dropout", "attention_dropout", "drop_path"}
"""Options of this program's models that are probabilities."""


class Settings(Section):
    """The whole composed configuration. `conf/config.yaml` explains its keys."""

    model: Group
    data: Group
    partition: Partition
    schedule: Group
    local: Group
    fba: FeatureBank
    optim: Optim
    transport: Group
    tracker: Group
    checkpoint: CheckpointSettings
    gpus: Workers | None
    device: Literal["auto", "cuda", "cpu"]
    oversubscribe: bool
    threads: Workers | None
    resume: str | None
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    epochs: Count
    max_steps: Count | None
    batch_size: Count
    eval_every: Count
    precision: Literal["fp32", "tf32", "bf16"]
    deterministic: bool
    progress_limit: Positive | None
    compile: bool
    # The following keys have defaults, because the records of older runs lack them.
    recover: Recover = Field(default_factory=Recover)
    objective: str | None = None
    name: Word | None = None
    tags: list[Word] = Field(default_factory=list)
    timeline: bool = True
    replicas: Workers = 1
    sync_batchnorm: bool = False
    recompute: bool = False
    max_minutes: Positive | None = None
    weights: str | None = None
    weights_partial: bool = False
    log_every: Count = 10
    log_grad_norm: bool = False

    @property
    def devices_asked(self) -> int:
        """Number of devices: `gpus` or, if that is None, the larger of 2 and `replicas`."""
        return max(2, self.replicas) if self.gpus is None else self.gpus

    @property
    def stages_asked(self) -> int:
        """Number of stages: `devices_asked` divided by `replicas`."""
        return self.devices_asked // self.replicas

    @property
    def fixes_modules(self) -> bool:
        """Whether the user has defined the modules, by `local.cuts` or `local.modules`."""
        return self.local.get("cuts") is not None or self.local.get("modules") is not None

    @property
    def threads_per_worker(self) -> int:
        """Number of threads of each worker: `threads` or, if that is None, a share of the cores.

        The usable cores are shared equally among `devices_asked` workers. The share is at least 1.
        """
        return self.threads or max(1, usable_cores() // self.devices_asked)

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        optim = self.optim
        only_zero = optim.schedule == "cosine_by_epoch" and self.epochs == 1
        if only_zero and optim.warmup_epochs < 1:
            problem = (
                "its last epoch has learning rate 0, so a run with epochs=1 would train nothing"
            )
            remedy = "use optim.schedule=cosine, or more epochs"
            raise ConfigError("optim.schedule", optim.schedule, problem, remedy)
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights_partial and self.weights is None:
            problem = "applies only with weights=FILE_OR_RUN_DIR"
            raise ConfigError("weights_partial", True, problem)
        if self.weights == "":
            raise ConfigError("weights", "''", "is empty", "give a file, or null")
        return self

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        replicas, devices = self.replicas, self.devices_asked
        if devices % replicas:
            above = -(-devices // replicas) * replicas
            problem = f"gpus={devices} cannot be divided evenly among so many replicas"
            remedy = f"use gpus={above}"
            remedy += f" or gpus={above - replicas}" if above > replicas else ""
            raise ConfigError("replicas", replicas, problem, remedy)
        if self.sync_batchnorm and self.compile:
            problem = "torch.compile cannot compile it"
            raise ConfigError("sync_batchnorm", True, problem, "use compile=false")
        if replicas > self.batch_size:
            problem = (
                f"a batch of {self.batch_size} samples cannot be shared among so many replicas"
            )
            remedy = f"use at most {self.batch_size}, or a larger batch_size"
            raise ConfigError("replicas", replicas, problem, remedy)
        return self


def parse(config: Mapping[str, Any]) -> Settings:
    """Check a composed configuration, given as plain data, and return it as typed settings.

    Raises:
        ConfigError: A key is missing or unknown, a value has the wrong type or is out of range, or
            two values do not fit each other.
    """
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        raise _config_error(error) from None
    checked("schedule.microbatches", settings.schedule.get("microbatches", 1), Count)
    if "depth" not in settings.transport:
        raise ConfigError("transport.depth", "", "has no value, and needs one")
    checked("transport.depth", settings.transport["depth"], Slots)
    checked("local.modules", settings.local.get("modules"), Count | None)
    _check_cuts(settings.local.get("cuts"))
    _check_probabilities(settings.model)
    if settings.fba.enabled and "bank" not in settings.local:
        key, value = as_typed("local", settings.local.get("_target_"))
        problem = f"the local method, {key}={value}, reads no feature bank"
        raise ConfigError("fba", "on", problem, "use local=fba")
    if settings.local.get("bank", config["fba"]) != config["fba"]:
        problem = "is set by the group fba, and cannot differ from it"
        raise ConfigError("local.bank", settings.local["bank"], problem, "use fba=on or fba=off")
    return settings


def _check_cuts(cuts: Any) -> None:
    names = cuts if isinstance(cuts, list) else [cuts]
    if cuts is not None and not all(isinstance(name, str) for name in names):
        problem = "must be a list of names of units, or the name of a partition of the model"
        raise ConfigError("local.cuts", cuts, problem)


def _check_probabilities(model: Group) -> None:
    # The model checks them too, but this check needs no import of torch.
    if str(model.get("_target_")).startswith("ppll_cli."):
        for name in sorted(PROBABILITIES & model.keys()):
            checked(f"model.{name}", model[name], Fraction)


def _config_error(error: ValidationError) -> ConfigError:
    detail = error.errors()[0]
    parts = [str(part) for part in detail["loc"]]
    place, kind = field_at(parts)
    if detail["type"] == "extra_forbidden":
        names = list(kind.model_fields)
        remedy = meant(parts[-1], names) + f"there are {', '.join(names)}"
        return ConfigError(".".join(parts), detail["input"], "there is no such key", remedy)
    if detail["type"] == "missing":
        return ConfigError(".".join(parts), "", "has no value, and needs one")
    # If a value may have several types, pydantic reports an error for each type.
    same = [other for other in error.errors() if field_at(other["loc"])[0] == place]
    return refusal(".".join(place), detail["input"], kind, same)


def field_at(keys: Iterable[object]) -> tuple[list[str], Any]:
    """Follow nested keys through the fields of `Settings` as far as possible.

    Return the keys that have fields, and the type of the last field. For example, `optim.lr.x`
    gives `["optim", "lr"]` and the type of `lr`. If the first key has no field, return `[]` and
    `Settings`.
    """
    place: list[str] = []
    kind: Any = Settings
    for key in map(str, keys):
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        if not is_section or key not in kind.model_fields:
            break
        place.append(key)
        kind = kind.model_fields[key].annotation
    return place, kind


def usable_cores() -> int:
    """Return how many cores this process may use, by its CPU affinity and its container's limit."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = core_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))
