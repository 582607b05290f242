"""The typed configuration, and all checks that need no model and no data. Imports no torch."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ppll_cli.config.options import as_typed
from ppll_cli.config.probability import check_probability
from ppll_cli.config.targets import describe
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.names import meant


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Positive = Annotated[Finite, Field(gt=0)]
NotNegative = Annotated[Finite, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=1, le=4096)]  # or threads; no machine has as many
Epochs = Annotated[Finite, Field(ge=0, le=1e9)]
Group = dict[str, Any]

LONGEST_WORD = 100
"""Longest name or tag in characters: a folder's name has room for 255 bytes."""


def _word(value: str) -> str:
    if not re.fullmatch(r"\w[\w.+=@-]*", value) or len(value) > LONGEST_WORD:
        raise ValueError(
            f"must be at most {LONGEST_WORD} letters, digits or signs of _ . + = @ -, and begin "
            "with a letter, a digit or _"
        )
    return value


Word = Annotated[str, AfterValidator(_word)]

MOST_SLOTS = 1024
"""Largest `transport.depth`: predictions may have to simulate as many batches."""


PROBABILITIES = {"dropout", "attention_dropout", "drop_path"}
"""Options of our models that are some."""


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Optim(_Section):
    """The optimizer and its learning rate.

    Attributes:
        lr: Learning rate after the warm-up.
        betas: Coefficients of AdamW.
        momentum: Momentum of SGD.
        nesterov: Whether SGD uses Nesterov momentum.
        schedule: How the learning rate falls: not at all, by `gamma` at each of `milestones`
            (epochs), or along a cosine to zero. `cosine` changes at each step and begins after the
            warm-up; `cosine_by_epoch` changes once an epoch and counts the warm-up's epochs.
        warmup_epochs: Epochs over which the learning rate rises linearly.
        warmup_lr: Learning rate of the first epoch of a warm-up, for `cosine_by_epoch`.
        label_smoothing: Part of each training target that is shared evenly among all classes.
        ema: Share of the averages of the model's weights that a step keeps; None: no averages.
        clip_norm: Largest gradient norm of a module; larger gradients are scaled down. None: never.
        nonfinite: What happens when a loss is NaN or infinite: `stop` ends the run, `skip` leaves
            out the steps with gradients that are not finite.
    """

    name: Literal["sgd", "adamw"]
    lr: Positive
    weight_decay: NotNegative
    momentum: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    betas: Annotated[list[Annotated[Finite, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    schedule: Literal["constant", "step", "cosine", "cosine_by_epoch"]
    warmup_epochs: Epochs
    milestones: list[Epochs]
    gamma: Annotated[Positive, Field(le=1)]
    clip_norm: Positive | None
    nonfinite: Literal["stop", "skip"] = "stop"
    # These have defaults because the records of older runs lack them.
    warmup_lr: Positive = 0.01
    label_smoothing: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[Finite, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ConfigError("optim.nesterov", True, "needs optim.momentum above 0")
        warms_up = self.schedule == "cosine_by_epoch" and self.warmup_epochs >= 1
        if warms_up and self.warmup_lr > self.lr:
            problem = f"a warm-up cannot begin above optim.lr={self.lr}"
            raise ConfigError("optim.warmup_lr", self.warmup_lr, problem)
        return self


class Partition(_Section):
    """How modules are grouped into stages."""

    name: Literal["uniform", "params", "flops", "profile", "manual"]
    cuts: list[str] | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "manual" and self.cuts is None:
            raise ConfigError(
                "partition.cuts",
                "null",
                "partition=manual needs the units that start stages 2 to s",
            )
        if self.name != "manual" and self.cuts is not None:
            raise ConfigError("partition.cuts", self.cuts, "is for partition=manual")
        return self


class FeatureBank(_Section):
    """How the auxiliary networks of later modules use features of earlier modules.

    Attributes:
        enabled: Whether they use them.
        features: What a module reads: the features of `every` earlier module, of the earlier
            modules that end a resolution stage (`stage_ends`), or of the last n modules; or the
            network's `first` features, which skip to its head. None: the task's own, see
            `resolved`. The records of older runs have no None; one without the key reads `every`.
        fusion: How they are joined with the auxiliary network's own features; `none`: not at all.
            None: `add` for first features, else `concatenate`.
        shared_head: Whether the head that reads them is shaped like the model's.
    """

    enabled: bool
    features: Literal["every", "stage_ends", "first"] | Count | None = "every"
    fusion: Literal["concatenate", "add", "none"] | None = "concatenate"
    shared_head: bool = True

    @property
    def joined(self) -> Literal["concatenate", "add", "none"]:
        """The fusion of a bank that leaves nothing open."""
        assert self.fusion is not None
        return self.fusion

    def resolved(self, first: bool) -> Self:
        """The same with nothing left open.

        Args:
            first: Whether first features are the task's own.
        """
        if not self.enabled:
            return self
        features = self.features or ("first" if first else "every")
        added = features == "first" and self.shared_head
        fusion = self.fusion or ("add" if added else "concatenate")
        return self.model_copy(update={"features": features, "fusion": fusion})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.enabled and len(self.model_fields_set) > 1:
            key, *_ = sorted(self.model_fields_set - {"enabled"})
            raise ConfigError(f"fba.{key}", getattr(self, key), "is for fba=on")
        if not self.shared_head and self.fusion in ("add", "none"):
            raise ConfigError("fba.shared_head", False, "is for fba.fusion=concatenate")
        return self


class CheckpointSettings(_Section):
    """When to save, how many of the newest checkpoints to keep, and whether to keep the best."""

    every: Count | None
    keep: Count
    best: bool


class Settings(_Section):
    """The whole composed configuration."""

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
    # These have defaults because the records of older runs lack them.
    objective: str | None = None
    name: Word | None = None
    tags: list[Word] = []
    timeline: bool = True
    replicas: Workers = 1
    sync_batchnorm: bool = False
    recompute: bool = False
    max_minutes: Positive | None = None
    weights: str | None = None
    weights_partial: bool = False
    log_every: Count = 10
    log_grad_norm: bool = False

    def until_s(self, began_s: float) -> float | None:
        """Return when `max_minutes` are over, in seconds on the clock of `began_s`; None: never."""
        return None if self.max_minutes is None else began_s + 60 * self.max_minutes

    @property
    def devices_asked(self) -> int:
        """Number of devices: `gpus`, or by default two, but at least one for each replica."""
        return max(2, self.replicas) if self.gpus is None else self.gpus

    @property
    def stages_asked(self) -> int:
        """Number of stages on these devices."""
        return self.devices_asked // self.replicas

    @property
    def threads_per_worker(self) -> int:
        """Threads of each worker: `threads`, or by default its share of the usable cores."""
        return self.threads or max(1, usable_cores() // self.devices_asked)

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        optim = self.optim
        only_zero = optim.schedule == "cosine_by_epoch" and self.epochs == 1
        if only_zero and optim.warmup_epochs < 1:
            raise ConfigError(
                "optim.schedule",
                optim.schedule,
                "its last epoch has learning rate 0, and epochs=1 is no more than that",
                "use optim.schedule=cosine, or more epochs",
            )
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights_partial and self.weights is None:
            raise ConfigError("weights_partial", True, "is for weights=FILE_OR_RUN_DIR")
        if self.weights == "":
            raise ConfigError("weights", "''", "names no file", "give one, or null")
        return self

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        replicas, devices = self.replicas, self.devices_asked
        if devices % replicas:
            above = -(-devices // replicas) * replicas
            raise ConfigError(
                "replicas",
                replicas,
                f"gpus={devices} devices cannot hold that many copies of every stage",
                f"use gpus={above}" + (f" or gpus={above - replicas}" if above > replicas else ""),
            )
        if self.sync_batchnorm and self.compile:
            raise ConfigError(
                "sync_batchnorm", True, "torch.compile cannot compile it", "use compile=false"
            )
        if replicas > self.batch_size:
            raise ConfigError(
                "replicas",
                replicas,
                f"a batch of {self.batch_size} samples cannot be shared by so many",
                f"use at most {self.batch_size}, or a larger batch_size",
            )
        return self


def parse(config: Mapping[str, Any]) -> Settings:
    """Check a composed configuration.

    Args:
        config: The configuration, as plain data.

    Raises:
        ConfigError: A value is of the wrong type or range, or a key does not exist.
    """
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        raise _config_error(error) from None
    microbatches = settings.schedule.get("microbatches")
    if not isinstance(microbatches, int) or isinstance(microbatches, bool) or microbatches < 1:
        raise ConfigError("schedule.microbatches", microbatches, "must be a whole number from 1 on")
    _check_modules(settings.local.get("modules"), settings.local.get("cuts"))
    _check_probabilities(settings.model)
    if settings.fba.enabled and "bank" not in settings.local:
        key, value = as_typed("local", settings.local.get("_target_"))
        problem = f"the local method, {key}={value}, reads no feature bank"
        raise ConfigError("fba", "on", problem, "use local=fba")
    if settings.local.get("bank", config["fba"]) != config["fba"]:
        raise ConfigError("local.bank", settings.local["bank"], "is not what `fba` says")
    depth = settings.transport.get("depth")
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise ConfigError("transport.depth", depth, "must be a whole number from 1 on")
    if depth > MOST_SLOTS:
        raise ConfigError(
            "transport.depth", depth, "is more than a channel can use", f"use at most {MOST_SLOTS}"
        )
    return settings


def _check_modules(count: Any, cuts: Any) -> None:
    """Check the settings of modules, also for a schedule without modules."""
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ConfigError("local.modules", count, "must be a whole number from 1 on, or null")
    names = cuts if isinstance(cuts, list) else [cuts]
    if cuts is not None and not all(isinstance(name, str) for name in names):
        problem = "must be a list of names of units, or the name of a partition of the model"
        raise ConfigError("local.cuts", cuts, problem)


def _check_probabilities(model: Group) -> None:
    """Check those of our own models here, where torch need not be imported for it."""
    if str(model.get("_target_")).startswith("ppll_cli."):
        for name in sorted(PROBABILITIES & model.keys()):
            check_probability(f"model.{name}", model[name])


def _config_error(error: ValidationError) -> ConfigError:
    """Return the first of pydantic's errors as the user sees it."""
    detail, *others = error.errors()
    parts = _place(detail["loc"])
    if detail["type"] == "extra_forbidden":
        names = _fields(parts[:-1])
        remedy = meant(parts[-1], names) + f"there are {', '.join(names)}"
        return ConfigError(".".join(parts), detail["input"], "there is no such key", remedy)
    if detail["type"] == "missing":
        return ConfigError(".".join(parts), "", "has no value, and needs one")
    # If a value may be of several types, pydantic reports an error for each, with the type's name
    # at the end of the location.
    keys = [part for part in parts if part.isidentifier() or part.isdigit()]
    known: Any = Settings
    place: list[str] = []
    for key in keys:
        if isinstance(known, type) and issubclass(known, BaseModel):
            if key not in known.model_fields:
                break
            known = known.model_fields[key].annotation
            place.append(key)
    same = [other for other in others if _place(other["loc"])[: len(place)] == place]
    problem = ", or ".join(describe(each["msg"]) for each in (detail, *same))
    return ConfigError(".".join(place), detail["input"], problem)


def _fields(place: list[str]) -> list[str]:
    """Return the names of the keys in a section."""
    section: Any = Settings
    for key in place:
        section = section.model_fields[key].annotation
    return list(section.model_fields)


def _place(location: tuple[int | str, ...]) -> list[str]:
    return [str(part) for part in location if not str(part).startswith("function-")]


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's quota."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
