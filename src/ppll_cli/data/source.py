"""The interface between data sets of every kind and the runner."""

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # not at run time: wrong options are refused before torch is imported
    import torch
    from PIL import Image
    from torch import Tensor

    from ppll_cli.leaves.values import InputSpec, ValueSpec
    from ppll_cli.tasks.task import Task

Predict = Callable[["Tensor"], "Tensor"]
"""A function that applies a model to images and returns the model's prediction."""

Tensors = dict[str, "Tensor"]
"""The tensors of a batch, by name."""

PREPROCESSING = (
    *("mean", "std", "size", "middle_part"),
    *("short_side", "long_side", "anchor"),
    *("scale", "overlap"),
)
"""Keys of data sets that define how pictures are prepared and how a model is applied to them.

If a trained model is evaluated on another data set, these keys keep the values from the training.
"""


class Prediction(NamedTuple):
    """A model's prediction for a picture.

    Attributes:
        result: The prediction as data for a JSON file.
        picture: A picture that shows the prediction, such as the enlarged picture; None if a
            picture would be of no use.
    """

    result: dict[str, Any]
    picture: "Image.Image | None" = None


@dataclass(frozen=True)
class EvaluationForm:
    """The largest shapes of evaluation batches, if they differ from those of training batches.

    Attributes:
        image: Shapes of the tensors that the model reads; for images an `ImageSpec`.
        targets: Shapes of the targets, by name. The task defines the names.
        samples: Largest number of samples of a batch.
    """

    image: "InputSpec"
    targets: "Mapping[str, ValueSpec]"
    samples: int


class BatchMaker(Protocol):
    """Makes the batches of a run. A batch is a dictionary of named tensors."""

    @property
    def steps_per_epoch(self) -> int: ...  # noqa: D102

    def train(self, epoch: int, batch: int) -> "dict[str, Tensor]":
        """Make a training batch. It must depend only on the run's seed, `epoch` and `batch`.

        Epochs, and the batches of an epoch, are numbered from 0. Copy tensors to the device with
        `ppll_cli.data.staging.to_device`, which does not wait for the device. The run may still
        read earlier batches, so do not write into their tensors. A separate thread calls this
        method; on CUDA, the thread has a stream of its own.

        There are two ways to draw random numbers:

        - From the global generators of torch, Python and NumPy, but only in the thread that calls
          this method. The program seeds them before each call. The training waits while a batch is
          made, because networks draw from torch's generator too.
        - From generators of your own, for example
          `ppll_cli.data.batches.generator_of(seeding.augmentation(seed, epoch, batch))`, with
          `seeding` from `ppll_cli`. Set `in_advance = True` in your class itself, not in a base
          class. Then batches are made during the training, and the global generators are not
          seeded. If the first batch draws from a global generator, the program raises a TypeError.
        """

    def evaluation(self, split: str, batch: int, size: int) -> "dict[str, Tensor]":
        """Make an evaluation batch, without augmentation, from samples in the order of the split.

        The batch must depend only on the arguments. Names and dtypes of its tensors are those of a
        training batch. The global generators are seeded before each call.

        Args:
            split: Name of the split.
            batch: Number of the batch in the split, from 0.
            size: Number of samples, which the schedule determines; only the last batch may have
                fewer.
        """


class Dataset(Protocol):
    """The interface of data sets. The constructor takes the keys of the data set's YAML file.

    `ppll_cli.data.dataset.ImageDataset` implements this interface for labelled images of one size.
    A data set may also have these members:

    - `draw_samples(predict, folder)`: called at the end of a run; creates `folder` and writes
      pictures there that show predictions for the test set. `predict` applies the model to images.
    - `mixed`: a dictionary of the options that mix training images in pairs, for example
      `{"data.mixup": 0.2}` (see `ppll_cli.data.mixing`). If it is not empty, batches have the
      targets of a `ppll_cli.tasks.classification.Classification` with `mixed=True`.
    - `identity(splits)`: entries that identify the data (see `ppll_cli.data.identity`). A run is
      not resumed on data with another identity.

    The evaluation of a finished run uses these members if the data set has them:

    - `class_names`: names of the classes, in the order of their labels.
    - `file_names(split)`: names of the picture files of a split, in order.
    - `inputs(picture, image, device)`: a batch of one picture for which a user wants a prediction:
      its tensors by name, without targets. `picture` is a PIL picture, and `image` is the model's
      `ImageSpec`.
    - `predicted(predict, picture, inputs)`: the `Prediction` for this picture, given the result of
      `inputs`.
    - `evaluated(splits, name)`: the splits, with the split `name` prepared for evaluation. This
      member is needed if `load` prepares a split only for training.
    - `test_is_held_out`: whether the split `test` is held out of the training set, as `val` is.
    """

    @property
    def drop_last(self) -> bool: ...  # noqa: D102

    @property
    def task(self) -> "Task": ...  # noqa: D102

    def prepare(self) -> None:
        """Make sure that the files exist. Called before `load`, and before the workers start."""

    def load(self) -> Mapping[str, Sized]:
        """Read and check the data, and return its splits: `train`, `test` and perhaps `val`.

        The program reads only the length of each split, which must be its number of samples.
        """

    def image_spec(self, splits: Any) -> "InputSpec":
        """Return the shape and normalisation of training images; `splits` is the result of `load`.

        If the shapes of batches differ, return the largest shape.

        For data without images, return another `InputSpec`, for the tensors that the model reads.
        """

    def evaluation_form(self, splits: Any) -> EvaluationForm | None:
        """Return the largest shapes of evaluation batches; None if they are as in training.

        `splits` is the result of `load`.
        """

    def batches(
        self, splits: Any, batch_size: int, seed: int, device: "torch.device"
    ) -> BatchMaker:
        """Return an object that makes the batches of a run.

        Args:
            splits: The result of `load`.
            batch_size: Number of samples of a training batch.
            seed: The run's seed.
            device: The device of the batches.
        """
