"""Models that a user could have written, named by `_target_`. Some of them fail on purpose."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from threading import Event

import torch
from torch import Tensor, nn

from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import classes_of
from ppll_cli.tasks.task import Task

Act = Callable[[], float | None]


class _Layer(nn.Module):
    """A Linear layer that calls a function in its third training pass."""

    def __init__(self, width: int, outputs: int, act: "Act | None" = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.act = act
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        if self.passes == 3 and self.act is not None:
            return self.linear(x.flatten(1)) * (self.act() or 1.0)  # type: ignore[no-any-return]
        out: Tensor = self.linear(x.flatten(1))
        return out


def _raise() -> None:
    raise ArithmeticError("the third pass is too much")


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    while True:  # the parent must end it, which is the test
        pass


def _wait() -> None:
    Event().wait()


def _blow_up() -> float:
    return float("nan")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _once(file: str, act: Act) -> float | None:
    """Call the function only the first time. The file remembers that it was called."""
    with suppress(FileExistsError), open(file, "x"):
        return act()
    return None


def _exhaust() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)  # one PiB, more than any address space


ACTS: dict[str, Act] = {
    "raise": _raise,
    "kill": _kill,
    "stop": _stop,
    "hang": _hang,
    "wait": _wait,
    "blow_up": _blow_up,
    "exhaust": _exhaust,
}


class Faulty:
    """A model of three or four units. The unit named by `unit` does the action named by `act`.

    If `once` names a file, the unit acts only in the first run, which creates the file.
    """

    def __init__(self, *, unit: str, act: str, once: str = "", layers: int = 3) -> None:
        self.unit = unit
        self.names = ("first", "second", "third", "fourth")[:layers]
        self.act = partial(_once, once, ACTS[act]) if once else ACTS[act]

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return the units."""
        pixels = image.channels * image.height * image.width
        widths = [pixels, *[8] * (len(self.names) - 1), classes_of(task, "faulty")]
        return [
            Unit(
                name,
                partial(_Layer, *width, self.act if name == self.unit else None),
                ("image" if name == "first" else "x",),
            )
            for name, width in zip(self.names, pairwise(widths), strict=True)
        ]


class NotUnits:
    """A class whose `units` returns something else."""

    def units(self, image: ImageSpec, task: Task) -> list[str]:
        """Return names instead of units."""
        return ["first", "second"]


class Idle:
    """A model of three units. Only the second one has parameters."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return Flatten, Linear and Identity."""
        pixels = image.channels * image.height * image.width
        linear = partial(nn.Linear, pixels, classes_of(task, "idle"))
        return [
            Unit("flat", nn.Flatten, ("image",)),
            Unit("linear", linear),
            Unit("out", nn.Identity),
        ]


class ReadsLabel:
    """A model whose second unit reads the label."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return Flatten and Identity."""
        return [Unit("flat", nn.Flatten, ("image",)), Unit("cheat", nn.Identity, ("label",))]


class Writes:
    """A model whose first unit writes a tensor with a name that losses read."""

    def __init__(self, *, written: str) -> None:
        self.written = written

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return Identity and Flatten."""
        first = Unit("first", nn.Identity, ("image",), (self.written,))
        return [first, Unit("flat", nn.Flatten, (self.written,))]


class Nested:
    """A model in which one unit's name is a prefix of the other's."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return Flatten and Identity."""
        return [Unit("a", nn.Flatten, ("image",)), Unit("a.b", nn.Identity)]


class Skipping:
    """A model with a float32 skip that three later units read."""

    def __init__(self, *, width: int = 8) -> None:
        self.width = width

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return a chain of five units. The first one makes `skip`, and others read it."""
        pixels = image.channels * image.height * image.width
        classes = classes_of(task, "skipping")
        first = Unit("first", partial(_Split, pixels, self.width), ("image",), ("x", "skip"))
        middle = [
            Unit(f"middle.{n}", partial(_Join, self.width, self.width), ("x", "skip"))
            for n in range(3)
        ]
        return [first, *middle, Unit("last", partial(_Join, self.width, classes), ("x", "skip"))]


class Detached:
    """A model in which the output of a trained layer has no influence on the gradients."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return five units. The first one makes `skip`, which others only read detached."""
        pixels = image.channels * image.height * image.width
        classes = classes_of(task, "detached")
        first = Unit("first", partial(_Split, pixels, 8), ("image",), ("x", "skip"))
        reads = ("x", "skip")
        middle = [Unit(f"middle.{n}", partial(_Beside, 8, 8), reads) for n in range(3)]
        return [first, *middle, Unit("last", partial(_Beside, 8, classes), reads)]


class Strided:
    """A model whose tensors and gradients have gaps or overlaps in memory, if nothing is copied."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return five units. `first` writes a slice, and `last` spreads its gradient."""
        pixels = image.channels * image.height * image.width
        last = partial(_Averaged, classes_of(task, "strided"))
        return [
            Unit("first", partial(_Sliced, pixels), ("image",)),
            Unit("second", nn.GELU),
            Unit("third", partial(nn.Linear, 48, 48)),
            Unit("fourth", nn.GELU),
            Unit("last", last),
        ]


class Twins:
    """A model in which a tensor has two names, each of which two operations of a unit read."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return five units. `second` writes a tensor twice; `third` gives its input a new name."""
        pixels = image.channels * image.height * image.width
        last = partial(_Residuals, 8, classes_of(task, "twins"))
        return [
            Unit("first", partial(_Layer, pixels, 8), ("image",)),
            Unit("second", partial(_Twice, 8), ("x",), ("x", "skip")),
            Unit("third", nn.Identity, ("x",), ("other",)),
            Unit("fourth", partial(_Residuals, 8, 8), ("x", "other")),
            Unit("last", last, ("x", "skip")),
        ]


class InPlace:
    """A chain of five units; `second` and `fourth` change their input in place.

    `third` makes a new tensor, or only gives its input another shape or name.
    """

    def __init__(self, *, third: str = "linear", in_training: bool = False) -> None:
        networks: dict[str, Callable[[], nn.Module]] = {
            "linear": partial(nn.Linear, 8, 8),
            "shape": nn.Flatten,
            "name": nn.Identity,
        }
        self.third = networks[third]
        self.name = "other" if third == "name" else "x"
        self.changes = nn.Dropout if in_training else nn.ReLU

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return Linear layers, and layers that change their input, perhaps only in training."""
        pixels = image.channels * image.height * image.width
        changes, name = partial(self.changes, inplace=True), (self.name,)
        return [
            Unit("first", partial(_Layer, pixels, 8), ("image",)),
            Unit("second", changes),
            Unit("third", self.third, ("x",), name),
            Unit("fourth", changes, name, name),
            Unit("last", partial(nn.Linear, 8, classes_of(task, "in place")), name),
        ]


class Views:
    """A model in which some units only change the shape of their input."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return Linear, two views, Linear and Linear."""
        pixels = image.channels * image.height * image.width
        classes = classes_of(task, "views")
        return [
            Unit("first", partial(_Flat, pixels, 8), ("image",)),
            Unit("fold", partial(nn.Unflatten, 1, (2, 4))),
            Unit("unfold", partial(nn.Flatten, 1)),
            Unit("middle", partial(nn.Linear, 8, 8)),
            Unit("last", partial(nn.Linear, 8, classes)),
        ]


class _Flat(nn.Module):
    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, width)

    def forward(self, image: Tensor) -> Tensor:
        return torch.tanh(self.linear(image.flatten(1)))


class _Split(nn.Module):
    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(pixels, width), nn.Linear(pixels, width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.flatten(1)
        return torch.tanh(self.a(x)), torch.tanh(self.b(x))


class _Join(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, outputs), nn.Linear(width, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.a(x)) + self.b(skip)
        return out


class _Twice(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = super().forward(x)
        return out, out


class _Residuals(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, outputs), nn.Linear(width, outputs)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        out: Tensor = self.a(x + x.sin()) + self.b(other.cos() + other)
        return out


class _Beside(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.linear(x + skip.detach()))
        return out


class _Sliced(nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, 6 * 96)

    def forward(self, image: Tensor) -> Tensor:
        """Return every second value of vectors, [B, 6, 48]."""
        out: Tensor = self.linear(image.flatten(1))
        return out.view(-1, 6, 96)[..., ::2]


class _Averaged(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Average vectors [B, T, 48] over T; the gradient is the same for each of them."""
        out: Tensor = self.linear(x.mean(1))
        return out
