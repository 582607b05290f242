"""What every data set is for a run, whatever its samples are."""

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong option is refused without it
    import torch
    from PIL import Image
    from torch import Tensor

    from ppll_cli.leaves.values import ValueSpec
    from ppll_cli.models.unit import ImageSpec
    from ppll_cli.tasks.task import Task


PREPROCESSING = (
    *("mean", "std", "size", "middle_part"),
    *("short_side", "long_side", "anchor"),
    *("scale", "overlap"),
)
"""Keys of data sets that say how pictures are made ready for a model, or what it makes of them.

They belong to a trained model: it is evaluated with its own, on other data too.
"""


class Prediction(NamedTuple):
    """What a model makes of one picture.

    Attributes:
        result: The same as plain data, for a JSON file.
        picture: What is shown of it; None where the result says it all.
    """

    result: dict[str, Any]
    picture: "Image.Image | None" = None


@dataclass(frozen=True)
class EvaluationForm:
    """What evaluation batches are like where they are not like training batches.

    Attributes:
        image: The largest images.
        targets: The largest targets, by the names that the task gives them.
        samples: How many samples a batch has at most.
    """

    image: "ImageSpec"
    targets: "Mapping[str, ValueSpec]"
    samples: int


class BatchMaker(Protocol):
    """Makes the batches of a run, by the names of a batch's tensors."""

    @property
    def steps_per_epoch(self) -> int: ...  # noqa: D102

    def train(self, epoch: int, batch: int) -> "dict[str, Tensor]":
        """One training batch, which depends on the run's seed and these two numbers alone.

        It is called in a thread, on CUDA with that thread's own stream. Copy to the device with
        `ppll_cli.data.staging.to_device`, which does not wait.
        """
        ...

    def evaluation(self, split: str, batch: int, size: int) -> "dict[str, Tensor]":
        """Batch number `batch` of at most `size` samples, in order and as they are."""
        ...


class Dataset(Protocol):
    """What the runner asks of a data set; its class's constructor takes the keys of its YAML file.

    `ppll_cli.data.dataset.ImageDataset` has it all for labelled images of one size. What
    `load` returns is the data set's own affair, but for the number of samples of each split:
    `train`, `test`, and `val` where something is held out.

    It may also have a method `draw_samples(predict, folder)`, which is called at the end of a run
    and writes pictures of what the model makes of the test set into a folder that is not there yet.
    `predict` takes images and returns the model's prediction.

    It may have `mixed`, the keys by which its training images are mixed in pairs, with their values
    (see `ppll_cli.data.mixing`): the targets of its batches are then those of a mixed
    `ppll_cli.tasks.classification.Classification`.

    And it may have a method `identity(splits)`, which says what identifies its data wherever the
    files are (see `ppll_cli.data.identity`): a run is then not resumed on others. Without it
    nothing is compared.

    What evaluating a finished run can use, where the data set has it:

    - `class_names`: names of the classes, by their labels.
    - `file_names(split)`: names of the files of a split's pictures, in order.
    - `inputs(picture, image, device)`: what a batch of one picture of the user's holds beside
      targets, by the names of a batch's tensors, given a PIL picture and the model's `ImageSpec`.
    - `predicted(predict, picture, inputs)`: the `Prediction` for it, given what `inputs` returned.
    - `evaluated(splits, name)`: the splits, with the named one ready for evaluation where `load`
      has it only as it is trained on.
    """

    @property
    def drop_last(self) -> bool: ...  # noqa: D102

    @property
    def task(self) -> "Task": ...  # noqa: D102

    def prepare(self) -> None:
        """Makes sure that the files exist; in the parent process, before any worker starts."""
        ...

    def load(self) -> Mapping[str, Sized]:
        """Reads and checks the data."""
        ...

    def image_spec(self, splits: Any) -> "ImageSpec":
        """What the images of training batches are like, given what `load` returned."""
        ...

    def evaluation_form(self, splits: Any) -> EvaluationForm | None:
        """What evaluation batches are like; None: like training batches."""
        ...

    def batches(
        self, splits: Any, batch_size: int, seed: int, device: "torch.device"
    ) -> BatchMaker:
        """What makes the batches of a run from what `load` returned."""
        ...
