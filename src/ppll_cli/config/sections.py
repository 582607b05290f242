"""The typed sections of the configuration. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Count, Fraction, NotNegative, Positive

BY_EPOCHS = ("cosine", "cosine_by_epoch")
"""Values of `optim.schedule` with which the learning rate depends on the number of epochs."""

USUAL: dict[str, object] = {
    "momentum": 0.0,
    "nesterov": False,
    "betas": [0.9, 0.999],
    "milestones": [80, 120],
    "gamma": 0.1,
    "warmup_lr": 0.01,
}
"""Default of each key where it has no effect, such as `momentum` with `optim=adamw`."""

Epochs = Annotated[FiniteFloat, Field(ge=0, le=1e9)]


class Section(BaseModel):
    """A part of the configuration, with fixed keys and types. Objects are immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Optim(Section):
    """The optimizer and its learning rate.

    Attributes:
        lr: Learning rate before `schedule` and the warm-up change it.
        betas: Decay factors of AdamW's averages of the gradient and of the squared gradient.
        momentum: Momentum of SGD.
        schedule: How the learning rate changes. `constant`: not at all. `step`: it is multiplied by
            `gamma` after each of `milestones` (epochs). `cosine`: after the warm-up it falls to
            zero along a cosine, and changes at each step. `cosine_by_epoch`: it falls to zero along
            a cosine that begins with the first epoch, even of a warm-up, and changes at each epoch.
        warmup_epochs: Number of epochs, which may be a fraction, in which the learning rate first
            rises: linearly from almost zero to `lr`, or with `cosine_by_epoch` from `warmup_lr` to
            the cosine.
        warmup_lr: Learning rate of the first epoch of a warm-up, for `cosine_by_epoch`.
        label_smoothing: Fraction of each training target that is distributed equally over all
            classes.
        ema: Decay factor of the averages of the model's weights; None for no averages.
        clip_norm: Largest norm of the gradients of a module (under local learning) or of the whole
            model (under back-propagation); None for no clipping.
        nonfinite: What to do when a loss is NaN or infinite: `stop` ends the run; `skip` skips
            optimizer steps whose gradients are not finite.
    """

    name: Literal["sgd", "adamw"]
    lr: Positive
    weight_decay: NotNegative
    momentum: Fraction = 0.0
    nesterov: bool = False
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    schedule: Literal["constant", "step", "cosine", "cosine_by_epoch"]
    warmup_epochs: Epochs
    milestones: list[Epochs]
    gamma: Annotated[Positive, Field(le=1)]
    clip_norm: Positive | None
    nonfinite: Literal["stop", "skip"] = "stop"
    # The following keys have defaults, because the records of older runs lack them.
    warmup_lr: Positive = 0.01
    label_smoothing: Fraction = 0.0
    ema: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None

    @property
    def unused(self) -> dict[str, str]:
        """Keys that were changed but have no effect, each with the setting that it needs."""
        other = "optim=sgd" if self.name == "adamw" else "optim=adamw"
        keys = dict.fromkeys(("momentum", "nesterov") if self.name == "adamw" else ["betas"], other)
        if self.schedule != "step":
            keys |= dict.fromkeys(("milestones", "gamma"), "optim.schedule=step")
        if self.schedule != "cosine_by_epoch":
            keys["warmup_lr"] = "optim.schedule=cosine_by_epoch"
        return {key: needs for key, needs in keys.items() if getattr(self, key) != USUAL[key]}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and not self.momentum:
            problem = "needs optim.momentum above 0"
            raise ConfigError("optim.nesterov", True, problem, "or use optim.nesterov=false")
        warms_up = self.schedule == "cosine_by_epoch" and self.warmup_epochs >= 1
        if warms_up and self.warmup_lr > self.lr:
            problem = f"a warm-up cannot begin above optim.lr={self.lr}"
            raise ConfigError("optim.warmup_lr", self.warmup_lr, problem, "give a smaller rate")
        return self


class Partition(Section):
    """How modules are grouped into stages.

    Attributes:
        name: What is about equal in all stages. `uniform`: the number of units. `params`: the
            number of parameters. `flops`: FLOPs. `profile`: measured seconds. `manual`: nothing,
            because the user gives the cuts.
        cuts: With `manual`, the name of the first unit of each stage (or, if a stage has several
            chunks, of each chunk) except the first; else None.
    """

    name: Literal["uniform", "params", "flops", "profile", "manual"]
    cuts: list[str] | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "manual" and self.cuts is None:
            problem = "partition=manual needs the cuts between stages"
            remedy = "give [UNIT,...], the first unit of each stage except the first stage"
            raise ConfigError("partition.cuts", None, problem, remedy)
        if self.name != "manual" and self.cuts is not None:
            problem = "applies only with partition=manual"
            remedy = "give partition=manual, or leave partition.cuts out"
            raise ConfigError("partition.cuts", self.cuts, problem, remedy)
        return self


class FeatureBank(Section):
    """How the auxiliary networks of later modules use features of earlier modules.

    Attributes:
        enabled: Whether auxiliary networks use features of earlier modules.
        features: Which features a module's auxiliary network reads. `every`: features of every
            earlier module. `stage_ends`: features of each earlier module that ends a resolution
            stage. A number n: features of the n previous modules. `first`: outputs of early units
            that the model's own head also reads (only for super-resolution). None: see `resolved`.
        fusion: How these features are fused with the auxiliary network's own. `none`: the bank is
            not used. None: `add` if `features` is `first` and `shared_head` is true, `concatenate`
            if not.
        shared_head: Whether the head that reads the features has the shape of the model's head.
        join: Where the features are fused with the auxiliary network's own. `head`: at the head of
            the auxiliary network, after pooling. `input`: at its input, before pooling.
        trains: What is trained by the loss of the head that reads the features. `module`: the
            module and its auxiliary network. `probe`: only this head. Then a second head, which
            does not read the features, trains the module.
        normalize: Whether each pooled vector is normalised, to mean 0 and variance 1, before the
            vectors are fused.
        measure_zeroed: Whether evaluations also measure each local head with the features of the
            bank set to zero.
    """

    enabled: bool
    # This default is for the records of older runs, which lack the key.
    features: Literal["every", "stage_ends", "first"] | Count | None = "every"
    fusion: Literal["concatenate", "add", "none"] | None = "concatenate"
    shared_head: bool = True
    # The following keys have defaults, because the records of older runs lack them.
    join: Literal["head", "input"] = "head"
    trains: Literal["module", "probe"] = "module"
    normalize: bool = False
    measure_zeroed: bool = False

    @property
    def joined(self) -> Literal["concatenate", "add", "none"]:
        """The value of `fusion`, never None. Call `resolved` first: it replaces None."""
        assert self.fusion is not None
        return self.fusion

    def resolved(self, first: bool) -> Self:
        """Return a copy in which `features` and `fusion` have a default instead of None.

        If `enabled` is False, return this object.

        Args:
            first: True for super-resolution models whose head reads outputs of early units: the
                default of `features` is then "first". For other models it is "every".
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
            raise ConfigError(f"fba.{key}", getattr(self, key), "applies only with fba=on")
        if not self.shared_head and self.fusion in ("add", "none"):
            raise ConfigError("fba.shared_head", False, "applies only with fba.fusion=concatenate")
        if self.fusion == "none":
            for key in ("join", "trains", "normalize", "measure_zeroed"):
                self._refuse(key, "needs a bank, which fba.fusion=none leaves out")
        if self.join == "input":
            for key in ("shared_head", "trains", "normalize"):
                self._refuse(key, "applies only with fba.join=head")
        return self

    def _refuse(self, key: str, problem: str) -> None:
        if (value := getattr(self, key)) != type(self).model_fields[key].default:
            raise ConfigError(f"fba.{key}", value, problem)

    def refuse_vectors(self) -> None:
        """Check that `join`, `trains` and `normalize` have their defaults.

        Call this for detection and super-resolution: these options do not apply to them.

        Raises:
            ConfigError: One of these options is not the default.
        """
        for key in ("join", "trains", "normalize"):
            self._refuse(key, "does not apply to detection and super-resolution")


class Recover(Section):
    """What the run does when a worker fails.

    Attributes:
        name: `off`: the run ends. `stage`: only the failed worker is started again. `auto`: `stage`
            if the run allows it, `off` if not.
        tries: How many times the same worker may be started again within `minutes`. At the next
            failure in this time, the run ends.
        minutes: The period for `tries`, in minutes.
        every: Largest number of messages on a channel between two snapshots of a stage. None: the
            program chooses the number, and takes snapshots more often where they cost little.
    """

    name: Literal["off", "auto", "stage"] = "off"
    tries: Count = 10
    minutes: Positive = 60
    every: Annotated[int, Field(ge=1, le=1024)] | None = None


class CheckpointSettings(Section):
    """When to save checkpoints, and which to keep.

    Attributes:
        every: Optimizer steps between two checkpoints; None to save at the end of each epoch.
        keep: Number of the newest checkpoints to keep.
        best: Whether to save also at each evaluation, and keep the checkpoint with the best metric.
    """

    every: Count | None
    keep: Count
    best: bool
