"""Units that cannot run in halves, or twice, are refused by name before the start."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.prepare.trials import (
    check_averages,
    check_halves,
    check_overlap,
    check_recompute,
)
from ppll_cli.tasks.classification import classes_of
from ppll_cli.tasks.task import Task
from tests.conftest import own_model, prepared
from tests.worker.cases import DATA

SPECS = {"x": ValueSpec((3,), torch.float32)}


class _Counting(torch.autograd.Function):
    """A product with a weight. Its gradients depend on the number of backward calls."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.kept = x, weight
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), (x, weight) = gradients, ctx.kept
        _Counting.calls += 1
        return gradient * weight * _Counting.calls, (gradient * x).sum(0)


class _Freeing(torch.autograd.Function):
    """The same product. Its first backward frees the saved tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.kept = x, weight
        return x * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        if ctx.kept is None:
            raise RuntimeError("nothing is kept any more")
        (gradient,), (x, weight) = gradients, ctx.kept
        ctx.kept = None
        return gradient * weight, (gradient * x).sum(0)


class Own(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.rand(3)), function

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.function.apply(x, self.weight)
        return made


class Hooked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """Return a product.

        A hook halves its gradient, and would run once in each half of a backward.
        """
        made = super().forward(x)
        if made.requires_grad:
            made.register_hook(lambda g: g / 2)  # type: ignore[no-untyped-call]
        return made


class Unable(nn.Module):
    """Refuses the random inputs of the test."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such values")


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: Own(_Counting), "gives different gradients"),
        (lambda: Own(_Freeing), "fails: nothing is kept any more"),
        (lambda: Hooked(3, 3), "gives different gradients"),
        (Unable, "fails: no such values"),
    ],
    ids=["counting", "freeing", "hooked", "unable"],
)
def test_a_unit_whose_halves_differ_is_refused(build: Callable[[], nn.Module], why: str) -> None:
    units = [Unit("stem", lambda: nn.Linear(3, 3)), Unit("odd", build)]
    with pytest.raises(
        ConfigError, match=f"^schedule=mine: .* the split backward of unit 'odd' {why}"
    ):
        check_halves(("schedule", "mine"), units, [SPECS, SPECS])


class Turning(nn.Linear):
    """Flips a sign in every forward pass, and stores it in no buffer."""

    sign = 1

    def forward(self, x: Tensor) -> Tensor:
        self.sign = -self.sign
        return torch.exp(super().forward(x) * self.sign)


class Growing(nn.Linear):
    """Has one operation more in each forward pass."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        made = super().forward(x)
        for _ in range(self.passes):
            made = torch.cat([made, made.exp()])[: len(x) + self.passes]
        return made.exp()


@pytest.mark.parametrize(
    ("build", "why"),
    [(lambda: Turning(3, 3), "gives different gradients"), (lambda: Growing(3, 3), "fails: .*")],
    ids=["turning", "growing"],
)
def test_a_unit_that_cannot_run_twice_is_refused(build: Callable[[], nn.Module], why: str) -> None:
    units = [Unit("stem", lambda: nn.Linear(3, 3)), Unit("odd", build)]
    refused = f"^recompute=true: .* of unit 'odd' {why}; use recompute=false$"
    with pytest.raises(ConfigError, match=refused) as error:
        check_recompute(units, [SPECS, SPECS])
    assert "\n" not in str(error.value)


def test_random_and_parameterless_units_may_be_split_or_run_twice() -> None:
    units = [
        Unit("drop", lambda: nn.Dropout(0.5)),
        Unit("norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))),
        Unit("two", lambda: nn.Bilinear(3, 3, 2), reads=("x", "y"), writes=("z",)),
    ]
    before = [{**SPECS, "y": SPECS["x"]}] * 3
    check_halves(("schedule", "mine"), units, before)
    check_recompute(units, before)


class Rotated(nn.Module):
    """Multiplies complex numbers by weights. A hook halves the gradient, as in `Hooked`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        made = x * self.weight
        made.register_hook(lambda g: g / 2)  # type: ignore[no-untyped-call]
        return made


def test_a_unit_that_reads_complex_numbers_is_tried_too() -> None:
    """Its input once took no gradient in the test, so its backward was not tested at all."""
    units = [Unit("odd", Rotated)]
    with pytest.raises(ConfigError, match="unit 'odd' gives different gradients"):
        check_halves(("schedule", "mine"), units, [{"x": ValueSpec((3,), torch.complex64)}])


class Scaled(nn.Linear):
    """Divides by a buffer, the mean size of its outputs, which each forward updates."""

    size: Tensor

    def __init__(self, update: Callable[["Scaled", Tensor], None]) -> None:
        super().__init__(3, 3)
        self.register_buffer("size", torch.ones(3))
        self.update = update

    def forward(self, x: Tensor) -> Tensor:
        made = super().forward(x)
        self.update(self, made.detach().abs().mean(0))
        return made / self.size


def _change(unit: Scaled, mean: Tensor) -> None:
    unit.size.lerp_(mean, 0.1)


def _assign(unit: Scaled, mean: Tensor) -> None:
    unit.size = 0.9 * unit.size + 0.1 * mean


@pytest.mark.parametrize(
    ("update", "why"),
    [
        (_change, "fails: .*inplace operation"),
        (lambda unit, mean: unit.size.data.lerp_(mean, 0.1), "gives different gradients"),
        (lambda unit, mean: unit.weight.data.mul_(0.9), "gives different gradients"),
    ],
    ids=["buffer", "data of a buffer", "data of a weight"],
)
def test_a_unit_whose_next_forward_changes_its_backward_is_refused(
    update: Callable[[Scaled, Tensor], None], why: str
) -> None:
    """Under GPipe it failed in the middle of a run, or ended with other weights than under bp."""
    units = [Unit("odd", lambda: Scaled(update))]
    with pytest.raises(ConfigError, match=f"^schedule=mine: .* unit 'odd' {why}") as error:
        check_overlap(("schedule", "mine"), units, [SPECS])
    assert "\n" not in str(error.value)


def test_recompute_allows_a_forward_to_change_buffers_in_place() -> None:
    """The second forward gets copies of the buffers, and comes right before the backward."""
    schedule = ("schedule", "mine")
    units = [Unit("buffer", lambda: Scaled(_change))]
    check_overlap(schedule, units, [SPECS], recompute=True)
    units = [Unit("odd", lambda: Scaled(_shrink))]
    with pytest.raises(ConfigError, match="unit 'odd' gives different gradients"):
        check_overlap(schedule, units, [SPECS], recompute=True)


class Table(nn.Module):
    """Looks up rows of a table, most of them many times."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(200, 8))
        self.register_buffer("index", torch.arange(100_000) * 7 % 200)

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + self.table[self.index]  # type: ignore[index]


def test_sums_whose_order_changes_are_not_blamed_on_the_schedule() -> None:
    """On several threads, the backward of indexing gives other last bits at each call."""
    units, threads = [Unit("table", Table)], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check_overlap(("schedule", "mine"), units, [SPECS])
        check_halves(("schedule", "mine"), units, [SPECS])
        check_recompute(units, [SPECS])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


class Twice(nn.Linear):
    """Applies its layer two times, each time in a checkpoint."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(3, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(super().forward, x, use_reentrant=self.reentrant)
        return x


def test_a_unit_that_adds_to_a_gradient_twice_is_refused() -> None:
    """Replicas began to average before all gradients were complete, and trained wrongly."""
    with pytest.raises(ConfigError, match=r"^replicas=2: .* unit 'odd' adds to"):
        check_averages(2, [Unit("odd", lambda: Twice(True))], [SPECS])


def test_other_units_may_run_between_others_and_be_averaged() -> None:
    """Units that refuse random values are not refused, and neither are gradients that are NaN."""
    units = [
        Unit("scaled", lambda: Scaled(_assign)),
        Unit("norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))),
        Unit("unable", Unable),
        Unit("twice", lambda: Twice(False)),
        Unit("nan", Undefined),
    ]
    check_overlap(("schedule", "mine"), units, [SPECS] * 5)
    check_averages(2, units, [SPECS] * 5)


class Tried:
    """A model with units of the classes above. Its second and third unit are equal."""

    def __init__(self, *, twice: bool) -> None:
        self.odd = (lambda: Twice(True)) if twice else (lambda: Scaled(_shrink))

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return four units."""
        pixels = image.channels * image.height * image.width
        first = Unit("first", lambda: nn.Sequential(nn.Flatten(), nn.Linear(pixels, 3)), ("image",))
        last = Unit("last", partial(nn.Linear, 3, classes_of(task, "tried")))
        return [first, Unit("odd", self.odd), Unit("too", self.odd), last]


def _shrink(unit: Scaled, mean: Tensor) -> None:
    unit.weight.data.mul_(0.9)


@pytest.mark.parametrize(
    ("twice", "options", "refused"),
    [
        (False, ["schedule=bp"], ""),
        (False, ["schedule=pp", "gpus=2"], ""),
        (False, ["schedule=gpipe", "gpus=2", "schedule.microbatches=1"], ""),
        (False, ["schedule=gpipe", "gpus=2"], "schedule=gpipe: it runs other micro-batches"),
        (False, ["schedule=1f1b", "gpus=2"], "schedule=1f1b: it runs other micro-batches"),
        (True, ["schedule=gpipe", "gpus=2"], ""),
        (True, ["schedule=bp", "gpus=2", "replicas=2"], "replicas=2: replicas average"),
        (True, ["schedule=bp", "gpus=2", "replicas=2", "sync_batchnorm=true"], ""),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # while tracing
def test_units_are_tried_only_where_it_matters(
    twice: bool, options: list[str], refused: str
) -> None:
    given = [*DATA, *own_model("prepare.test_trials.Tried", twice=twice), *options]
    if refused:
        with pytest.raises(ConfigError) as error:
            prepared(*given)
        assert str(error.value).startswith(refused)
    else:
        prepared(*given)


class Undefined(nn.Module):
    """Has no gradient at its random inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return (-x).sqrt()
