"""A class of a user's own that cannot be used is refused in one line."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pytest
from torch import Tensor, nn

from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.files import Part
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import Pool
from ppll_cli.tasks.task import Task
from tests.cli.bad_input.conftest import Refused, rows, write
from tests.conftest import own_model

CRITERION = "criterion" if sys.version_info < (3, 12) else "'criterion'"  # in Python's message


class NoModel:
    """A model that has no units."""


class Chain:
    """A model of two units: Flatten, and a unit that each subclass defines."""

    writes: tuple[str, ...] = ("x",)

    def second(self, pixels: int) -> nn.Module:
        """Build the module of the second unit."""
        return nn.Linear(pixels, 10)

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        pixels = image.channels * image.height * image.width
        second = Unit("second", partial(self.second, pixels), writes=self.writes)
        return [Unit("flat", nn.Flatten, ("image",)), second]


class Wider(Chain):
    """A model whose second unit expects more features than the first one returns."""

    def second(self, pixels: int) -> nn.Module:
        return nn.Linear(pixels + 1, 10)


class TwoNames(Chain):
    """A model whose second unit claims to return two tensors."""

    writes = ("x", "y")


class NoName(Chain):
    """A model whose second unit names no output."""

    writes = ()


class OneNameTwice(Chain):
    """A model whose second unit gives two outputs the same name."""

    writes = ("x", "x")


class OneString(Chain):
    """A model whose second unit names its output by a string instead of a tuple."""

    writes = "x"  # type: ignore[assignment]


class SetOfNames(Chain):
    """A model whose second unit names its output by a set, which has no order."""

    writes = frozenset({"x"})  # type: ignore[assignment]


class NoNames(Chain):
    """A model whose second unit has None in the place of the names of outputs."""

    writes = None  # type: ignore[assignment]


class NumberAsName(Chain):
    """A model whose second unit names its output by a number."""

    writes = (1,)  # type: ignore[assignment]


class NoFunction(Chain):
    """A model whose second unit has a network in the place of the function that builds it."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        first, second = super().units(image, task)
        return [first, replace(second, build=second.build())]


class SharedWeights(Chain):
    """A model that builds one network, and returns it at each call."""

    made: nn.Module | None = None

    def second(self, pixels: int) -> nn.Module:
        self.made = self.made or super().second(pixels)
        return self.made


class NoBatch(Chain):
    """A model whose output has another dimension before the batch."""

    def second(self, pixels: int) -> nn.Module:
        return nn.Unflatten(0, (1, -1))


class Products(Chain):
    """A model whose output has the products of all pairs of samples."""

    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.T

    def second(self, pixels: int) -> nn.Module:
        return self.Pairs()


class Numbered(Chain):
    """A model whose second unit has a number as its name."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        first, second = super().units(image, task)
        return [first, replace(second, name=2)]  # type: ignore[arg-type]


class Endless:
    """A model whose units never end."""

    def units(self, image: ImageSpec, task: Task) -> Iterator[Unit]:
        return (Unit(f"layers.{number}", nn.Flatten, ("image",)) for number in count())


class NoPrediction(Chain):
    """A model whose output is a feature map instead of logits."""

    def second(self, pixels: int) -> nn.Module:
        return nn.Unflatten(1, (pixels, 1, 1))


class RaisesInConstructor:
    def __init__(self) -> None:
        raise KeyError("where is it")


class RaisesInUnits:
    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        raise ValueError("not these images\nnor others")


class ReturnsNumber(LocalMethod):
    def criterion(self, site: Site) -> Criterion:
        return 3  # type: ignore[return-value]


class ReturnsModule(LocalMethod):
    """A local method whose criterion is a plain network without a loss."""

    def criterion(self, site: Site) -> Criterion:
        return nn.Identity()  # type: ignore[return-value]


class MisfitHead(LocalMethod):
    """A local method whose head expects features of another width."""

    def criterion(self, site: Site) -> Criterion:
        return Criterion(nn.Linear(3, 3), (site.feature,), site.task)


class KeptHead(LocalMethod):
    """A local method that keeps its head in the class."""

    head = nn.Linear(128, 10)

    def criterion(self, site: Site) -> Criterion:
        return Criterion(nn.Sequential(Pool(2), self.head), (site.feature,), site.task)


class KeptLayer(Chain):
    """A model that keeps a layer in the class."""

    layer = nn.Linear(64, 10)

    def second(self, pixels: int) -> nn.Module:
        return nn.Sequential(self.layer)


class NoTransport:
    """A class with the constructor of a transport, but no transport."""

    def __init__(self, *, depth: int, wire_dtype: str | None, ipc: bool) -> None:
        self.depth, self.wire_dtype = depth, wire_dtype


class Unreadable(ImageDataset):
    """A data set that raises an exception that is not of this program."""

    class_count, channel_count = 10, 1

    def read(self, part: Part) -> Arrays:
        raise RuntimeError("the disk is on fire")


class Misnamed(ImageDataset):
    """A data set that names fewer classes than it has."""

    class_count, channel_count, class_names = 10, 1, ("zero", "one")

    def read(self, part: Part) -> Arrays:
        return Arrays(np.zeros((9, 1, 8, 8), np.uint8), np.arange(9), "own.bin")


class Labelless(ImageDataset):
    """A data set with too few labels."""

    class_count, channel_count = 10, 1

    def read(self, part: Part) -> Arrays:
        return Arrays(np.zeros((3, 1, 8, 8), np.uint8), np.zeros(2, np.int64), "own.bin")


UNUSABLE = """
model no_such.Module | cannot be imported (No module named 'no_such')
model ppll_cli.models.vit.Vit | did you mean ViT?
model ViT | is not the dotted path of a class
model HERE.NoModel | it has no 'units'; see ppll_cli.models.unit.Model
model HERE.Wider | running a sample through 'second' raised RuntimeError:
model HERE.TwoNames | unit second returned Tensor instead of a tensor for each name that it writes
model HERE.NoFunction | `build` of unit 'second' is no function that returns a network
model HERE.SharedWeights | 'second' has the same 'weight' after two calls of its build(); build()
local HERE.KeptHead | module 0 raised TypeError: the parameter 'head.1.weight' existed before the
model HERE.NoBatch | 'second' writes 'x' with shape [1, 7, 64] for 7 samples; the first dimension
model HERE.Numbered | must return a list of at least one Unit, each with text as its name
model HERE.Endless | its units() returns more than 10000 units; it may never end; put several
model HERE.RaisesInConstructor | constructing it raised KeyError: 'where is it'; see line
local fractions.Fraction | derive it from ppll_cli.local.method.LocalMethod
local HERE.ReturnsModule | its criterion() must return a Criterion, not Identity
local HERE.MisfitHead | the auxiliary network of module 0 raised RuntimeError
transport HERE.NoTransport | has no 'obstacle'; see ppll_cli.transport.channel.Transport
data HERE.Unreadable | loading the data raised RuntimeError: the disk is on fire; see line
"""
UNUSABLE += (
    "model HERE.NoName | unit 'second' writes (): it must write at least one tensor, "
    "and no name twice; give each tensor\n"
    "data HERE.Misnamed | its class_names has 2 names, but its task has 10 classes; "
    "give each class a name\n"
)

UNUSABLE_TOO = """
model HERE.NoNames | must be tuples of names, not None
local HERE.ReturnsNumber | the auxiliary network of module 0 raised TypeError: int was built
local ppll_cli.local.method.LocalMethod | abstract method CRITERION
model ppll_cli.__version__ | is not a class
model HERE.OneNameTwice | unit 'second' writes ('x', 'x'): it must write
model HERE.OneString | reads and writes of unit 'second' must be tuples of names, not 'x'; for
model HERE.SetOfNames | must be tuples of names, not frozenset({'x'}); for example ("x",)
model HERE.NumberAsName | must be tuples of names, not (1,)
model HERE.KeptLayer | 'second' raised TypeError: the parameter '0.weight' existed before the net
model HERE.Products | 'x' with shape [7, 7] for 7 samples and [1, 1] for one; only the first
model HERE.RaisesInUnits | units() raised ValueError: not these images; see line
model tests.own_models.NotUnits | must return a list of at least one Unit
model tests.own_models.ReadsLabel | reads 'label', which no earlier unit writes
"""
"""Slow cases: other faults that are found by the checks above."""


def chosen(group: str, path: str) -> str:
    """Return the arguments that choose a class for a group of the configuration."""
    removed = own_model("")[1:] if group == "model" else []
    return " ".join([*removed, f"{group}._target_={path}"])


def here(table: str) -> list[list[str]]:
    return rows(table.replace("HERE", __name__).replace("CRITERION", CRITERION))


@pytest.mark.parametrize(
    "row",
    [
        *here(UNUSABLE),
        *(pytest.param(row, marks=pytest.mark.slow) for row in here(UNUSABLE_TOO)),
    ],
    ids=lambda row: row[0],
)
def test_a_class_that_cannot_be_used_is_refused(refused: Refused, row: list[str]) -> None:
    target, words = row
    refused(chosen(*target.split()), words)


@pytest.mark.parametrize(
    ("content", "error"),
    [("def f(:", "SyntaxError: "), ("import sys\nsys.exit(3)", "SystemExit: 3; see line 2 of ")],
)
def test_a_file_that_cannot_be_imported_is_refused(
    refused: Refused, content: str, error: str
) -> None:
    write("broken.py", content)
    refused(chosen("model", "broken.Model"), f"importing it raised {error}")


def test_the_message_names_what_a_classs_result_does_not_fit(refused: Refused) -> None:
    data = chosen("data", f"{__name__}.Labelless")
    refused(data, "own.bin: holds 3 images and 2 labels", "data.root=null")
    model = chosen("model", f"{__name__}.NoPrediction")
    refused(model, "the task's loss of its output (64, 1, 1) raised", "model=second")
