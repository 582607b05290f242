"""Loads a trained run from its directory, prepares pictures for its model, and predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppll_cli import seeding
from ppll_cli.config.settings import Settings, parse
from ppll_cli.config.targets import blaming, targets_in
from ppll_cli.config.weights import EMA_FILE, MODEL_FILE
from ppll_cli.data.pictures.files import decoded, in_memory
from ppll_cli.data.source import Prediction
from ppll_cli.errors import ConfigError
from ppll_cli.job import checkpoint
from ppll_cli.job.manifest import DamagedError
from ppll_cli.job.numerics import Numerics
from ppll_cli.job.placing import placed
from ppll_cli.launch.resume import UNNAMED, recorded_in
from ppll_cli.leaves.names import class_path
from ppll_cli.leaves.random_states import generators_of, seed_each
from ppll_cli.leaves.values import InputSpec
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.unit import IMAGE
from ppll_cli.prepare.loading import LoadedData, load_data
from ppll_cli.prepare.subject import make_units
from ppll_cli.tasks.task import Task

OURS = "ppll_cli."
"""Prefix of the import paths of this program's own classes."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, whose model can be used.

    Attributes:
        settings: The run's settings. `settings.data` describes the data set in `data`.
        step: Number of optimizer steps that trained the weights; None if unknown.
        model: The model, in evaluation mode. It maps its inputs to a prediction.
        data: The loaded data set: the one of the training, or another one to evaluate on.
    """

    run_dir: Path
    settings: Settings
    step: int | None
    model: PlainModel
    data: LoadedData
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; empty for super-resolution."""
        return self.data.classes

    @property
    def image(self) -> InputSpec:
        """Describes the inputs of the model; an `ImageSpec` if they are images."""
        return self.data.input_spec

    @property
    def task(self) -> Task:
        """The task that the run was trained for."""
        return self.data.task

    @property
    def numerics(self) -> Numerics:
        """Precision and determinism with which the run computed."""
        return Numerics(self.settings.precision, self.settings.deterministic)

    def preprocess(self, picture: Image.Image | str | Path) -> Tensor:
        """Turn a picture (a Pillow image, or the path of an image file) into the model's input.

        Returns:
            float32 [1, C, H, W], on the model's device.

        Raises:
            ConfigError: The file is no picture, or the data set cannot prepare a user's pictures.
        """
        return self._inputs(_opened(picture))[IMAGE]

    def predict(self, picture: Image.Image | str | Path) -> Prediction:
        """Predict from a picture (a Pillow image, or the path of an image file).

        Returns:
            For classification, the probability of each class; for detection, the boxes and a
            drawing of them; for super-resolution, the enlarged picture.

        Raises:
            ConfigError: The file is no picture, or the data set cannot prepare a user's pictures.
        """
        predicted, opened = self._of_data("predicted"), _opened(picture)
        with self.numerics.applied(self.device):
            found: Prediction = predicted(self.apply, opened, self._inputs(opened))
        return found

    def apply(self, inputs: Tensor | Mapping[str, Tensor], number: int = 0) -> Tensor:
        """Return the model's prediction, computed as in the run's evaluations.

        Args:
            inputs: The tensors that the model reads, by name, or the only tensor that its first
                unit reads, for example images, float32 [B, C, H, W]. All are on the model's device.
            number: Index of the batch in its split. It seeds the random numbers of models that draw
                some in evaluation.
        """
        generators = generators_of(self.device)

        def seed(unit: str) -> None:
            seed_each(generators, seeding.unit_forward(self.settings.seed, unit, -1, number))

        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),  # the caller's random numbers must not change
            torch.no_grad(),
            self.numerics.autocast(self.device),
        ):
            made = self.model(inputs, seed)
        prediction: Tensor = made[0] if isinstance(made, tuple) else made
        return prediction

    def _inputs(self, picture: Image.Image) -> dict[str, Tensor]:
        inputs: dict[str, Tensor] = self._of_data("inputs")(picture, self.image, self.device)
        return inputs

    def _of_data(self, name: str) -> Any:
        method = getattr(self.data.dataset, name, None)
        if method is None:
            path = self.settings.data.get("_target_")
            problem = f"has no method {name!r}, which is needed for pictures of your own"
            raise ConfigError("data._target_", path, problem, "see ppll_cli.data.source.Dataset")
        return method


def load_run(
    run_dir: str | Path,
    *,
    checkpoint: str | int = "last",
    ema: bool = False,
    device: str | torch.device = "cpu",
    classes: Sequence[Any] = (),
) -> LoadedRun:
    """Load the model and the data set of a run; `ppll_cli.load_run` explains the arguments."""
    run = recorded_in(Path(run_dir).expanduser(), "RUN_DIR")
    config = dict(run.config)
    _check_named(config, classes)
    return loaded(run.run_dir, config, str(checkpoint), torch.device(device), ema=ema)


def loaded(
    run_dir: Path,
    config: Mapping[str, Any],
    name: str,
    device: torch.device,
    other_data: str | None = None,
    ema: bool = False,
) -> LoadedRun:
    """Build the model of a run, load its weights from a checkpoint, and load the data set.

    Args:
        run_dir: The run directory.
        config: The run's configuration; its group `data` may describe another data set.
        name: The checkpoint: "last", "best", or a number of optimizer steps. For "last", the file
            of the final model is used if the run directory has no checkpoints.
        device: Where to put the model.
        other_data: Name of the other data set, for errors; None for the data of the training.
        ema: Whether to load the averages of the weights.

    Raises:
        ConfigError: The configuration is wrong, the data cannot be loaded, or the checkpoint is
            missing, damaged, or without averages, or does not fit the model or the data.
    """
    tensors, step = _weights(run_dir, name, ema)
    settings = parse(config)
    data = load_data(settings.data)
    try:
        _, units = make_units(settings.model, data.input_spec, data.task, settings.seed)
    except ConfigError as error:
        if other_data is None:
            raise
        problem = f"does not fit the run's model: {error}"
        raise ConfigError("data", other_data, problem, "give data for the run's task") from None
    model = PlainModel(units, settings.seed)
    _check_fit(model, tensors, run_dir, other_data)
    model.load_state_dict(tensors)
    with blaming("device", device, "moving the model there"):
        placed(model, device, compiled=False).eval()
    return LoadedRun(run_dir, settings, step, model, data, device)


def _weights(run_dir: Path, name: str, ema: bool) -> tuple[dict[str, Tensor], int | None]:
    whole = run_dir / (EMA_FILE if ema else MODEL_FILE)
    try:
        # A run that keeps no checkpoints has only a file of the final model.
        if name == "last" and not (run_dir / "checkpoints").exists() and whole.is_file():
            return load_file(whole), None
        found = checkpoint.named(run_dir, name)
        if ema and not checkpoint.has_ema(found.folder):
            problem = "the run kept no averages of its weights"
            raise ConfigError("ema", ema, problem, "train with optim.ema=0.999")
        return checkpoint.model_tensors(found.folder, ema), found.step
    except FileNotFoundError as error:
        problem = "the run has no such checkpoint"
        raise ConfigError("checkpoint", name, problem, str(error)) from None
    except (DamagedError, SafetensorError, OSError) as error:
        raise ConfigError("checkpoint", name, f"cannot be used: {error}") from None


def _check_fit(
    model: PlainModel, tensors: Mapping[str, Tensor], run_dir: Path, other_data: str | None
) -> None:
    needed = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    there = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name in (*needed, *there):
        if needed.get(name) != there.get(name):
            has, needs = (shapes.get(name, "missing") for shapes in (there, needed))
            what = f"{name} is {has} in the run, but {needs} in the model built here"
            if other_data is None:
                problem = f"this version builds the run's model differently: {what}"
                remedy = "use the version of ppll-run that trained it"
                raise ConfigError("RUN_DIR", run_dir, problem, remedy)
            problem = f"its images or classes do not fit the run's model: {what}"
            remedy = "give data with images and classes like those of the training"
            raise ConfigError("data", other_data, problem, remedy)


def _check_named(config: Mapping[str, Any], classes: Sequence[Any]) -> None:
    given = {each if isinstance(each, str) else class_path(each) for each in classes}
    for key, target in targets_in({group: config[group] for group in ("model", "data")}):
        if not target.startswith(OURS) and target not in given:
            name = target.rpartition(".")[2]
            remedy = f"import it, and pass it: load_run(..., classes=[{name}])"
            raise ConfigError(key, target, UNNAMED, remedy)


def _opened(picture: Image.Image | str | Path) -> Image.Image:
    try:
        return decoded(Path(picture)) if isinstance(picture, str | Path) else in_memory(picture)
    except ConfigError as error:
        raise ConfigError("picture", picture, error.problem, error.remedy) from error
    except (ValueError, OSError) as error:
        raise ConfigError("picture", picture, f"cannot be used ({error})") from error
