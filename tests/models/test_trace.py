"""Outputs and costs of units, compared with counts by hand."""

import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec, empty
from ppll_cli.models.resnet import CifarResNet
from ppll_cli.models.trace import Cost, measure, problem_of, trace
from ppll_cli.models.unit import IMAGE, ImageSpec, Unit, build_unit
from ppll_cli.models.vit import ViT
from ppll_cli.tasks.classification import Classification
from tests.warm import passes_in_a_new_process

BATCH = {IMAGE: ValueSpec((2, 6, 5), torch.float32)}


def frozen() -> nn.Module:
    return nn.Linear(3, 5).requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "shape", "params", "flops"),
    [
        (partial(frozen), (3,), 3 * 5 + 5, 2 * 3 * 5),
        (partial(nn.Linear, 3, 5), (3,), 3 * 5 + 5, 2 * 3 * 5),
        (partial(nn.Linear, 3, 5, bias=False), (7, 3), 3 * 5, 2 * 7 * 3 * 5),
        (
            partial(nn.Conv2d, 2, 4, 3, padding=1, bias=False),
            (2, 6, 5),
            4 * 2 * 3 * 3,
            2 * (4 * 6 * 5) * (2 * 3 * 3),
        ),
        (
            partial(nn.Conv2d, 2, 4, 3, stride=2),
            (2, 7, 5),
            4 * 2 * 3 * 3 + 4,
            2 * (4 * 3 * 2) * (2 * 3 * 3),
        ),
        (partial(nn.BatchNorm2d, 2), (2, 6, 5), 4, 0),
        (nn.ReLU, (2, 6, 5), 0, 0),
    ],
)
def test_parameters_and_flops_equal_counts_by_hand(
    build: partial[nn.Module], shape: tuple[int, ...], params: int, flops: int
) -> None:
    _, cost = measure(build, lambda module: module(empty(ValueSpec(shape, torch.float32))))
    assert cost == Cost(params, flops, cost.single_valued)


@pytest.mark.parametrize(
    ("norm", "shape", "single"),
    [
        (partial(nn.BatchNorm2d, 4), (4, 1, 1), True),
        (partial(nn.BatchNorm2d, 4), (4, 1, 2), False),
        (partial(nn.BatchNorm1d, 4), (4,), True),
        (partial(nn.BatchNorm1d, 4), (4, 3), False),
        (partial(nn.GroupNorm, 2, 4), (4, 1, 1), False),
        (partial(nn.LayerNorm, 4), (4,), False),
    ],
)
def test_batch_norm_that_would_see_a_single_value_is_found(
    norm: partial[nn.Module], shape: tuple[int, ...], single: bool
) -> None:
    feature = empty(ValueSpec(shape, torch.float32))
    _, cost = measure(lambda: nn.Sequential(nn.Identity(), norm()), lambda net: net(feature))
    assert cost.single_valued == (("1",) if single else ())
    if single:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm()(torch.zeros(1, *shape))


def test_a_batchnorm_that_cannot_normalise_one_sample_in_evaluation_is_refused() -> None:
    """The message once was torch's, about training."""

    def run(shape: tuple[int, ...]) -> None:
        feature = empty(ValueSpec(shape, torch.float32))
        norm = partial(nn.BatchNorm2d, 4, track_running_stats=False)
        measure(lambda: nn.Sequential(nn.Identity(), norm()), lambda net: net(feature))

    run((4, 1, 2))
    with pytest.raises(TypeError, match=r"^the layer '1' has track_running_stats=False .* fails"):
        run((4, 1, 1))


class Two(nn.Module):
    def forward(self, image: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return image[..., :3].double(), x.flatten(1)


def test_outputs_are_traced_by_name() -> None:
    units = [
        Unit("conv", partial(nn.Conv2d, 2, 4, 1), reads=(IMAGE,)),
        Unit("two", Two, reads=(IMAGE, "x"), writes=("part", "x")),
        Unit("relu", nn.ReLU, reads=("part",), writes=("part",)),
        Unit("head", partial(nn.Linear, 120, 3), writes=("prediction",)),
    ]
    traced = trace(units, BATCH)
    assert [unit.outputs for unit in traced] == [
        (ValueSpec((4, 6, 5), torch.float32),),
        (ValueSpec((2, 6, 3), torch.float64), ValueSpec((120,), torch.float32)),
        (ValueSpec((2, 6, 3), torch.float64),),
        (ValueSpec((3,), torch.float32),),
    ]


class Watched(nn.Module):
    """Records how it is run."""

    def __init__(self, seen: list[tuple[bool, bool, str]]) -> None:
        super().__init__()
        self.seen = seen
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled(), self.weight.device.type))
        return x


def test_tracing_computes_no_gradients_and_uses_no_memory() -> None:
    seen: list[tuple[bool, bool, str]] = []
    trace([Unit("watched", partial(Watched, seen), reads=(IMAGE,))], BATCH)
    in_training = (True, False, "meta")
    assert seen == [(False, False, "meta"), in_training, in_training]  # again: `seen` has changed
    assert torch.is_grad_enabled()
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize(
    "model",
    [ViT(dim=8, depth=2, heads=2, patch=4, dropout=0.5), CifarResNet(depth=8)],
    ids=["vit", "resnet"],
)
def test_tracing_changes_neither_random_numbers_nor_initial_weights(
    model: ViT | CifarResNet,
) -> None:
    units = model.units(ImageSpec(1, 8, 8), Classification(3))
    before = torch.get_rng_state()
    traced = trace(units, {IMAGE: ValueSpec((1, 8, 8), torch.float32)})
    assert torch.equal(torch.get_rng_state(), before)
    assert traced[-1].outputs == (ValueSpec((3,), torch.float32),)
    built = [build_unit(unit, seed=0) for unit in units]
    assert [unit.cost.params for unit in traced] == [
        sum(parameter.numel() for parameter in module.parameters()) for module in built
    ]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_tracing_imports_the_compiler_only_for_a_network_that_uses_it() -> None:
    code = (
        "import sys, torch, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from torch import nn\n"
        "from ppll_cli.models.trace import measure, problem_of, trace\n"
        "x = torch.empty(1, 3, device='meta')\n"
        "def plain(): return nn.Sequential(nn.Linear(3, 3), nn.GELU())\n"
        "_, cost = measure(plain, lambda network: network(x))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "_, nested = measure(lambda: (measure(plain, lambda network: network(x)), plain())[1],"
        " lambda network: network(x))\n"
        "assert nested == cost and 'torch._dynamo' not in sys.modules\n"
        "from ppll_cli.leaves.values import ValueSpec\n"
        "from ppll_cli.models.unit import Unit\n"
        "specs = {'x': ValueSpec((3,), torch.float32)}\n"
        "unit = Unit('plain', plain)\n"
        "assert not problem_of(unit, specs, trace([unit], specs)[0].outputs)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "def compiling():\n"
        "    import torch._dynamo as early\n"
        "    assert early.optimize and early.config and early.reset\n"
        "    assert sys.modules['torch._dynamo'].optimize is early.optimize\n"
        "    assert torch.compiler.disable(recursive=False)(plain) is not plain\n"
        "    return torch.compile(plain())\n"
        "_, compiled = measure(compiling, lambda network: network(x))\n"
        "assert compiled == cost\n"
        "assert hasattr(sys.modules['torch._dynamo'], 'optimize')\n"
    )
    assert passes_in_a_new_process(code)


class _Odd(nn.Module):
    """A network with one parameter, which it ignores; `run` makes its output."""

    def __init__(self, parameter: Callable[[], nn.Parameter], run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight, self.run = parameter(), run

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


def _real() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2))


def _complex() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2, dtype=torch.complex64))


class _Extra(nn.Identity):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


ODD: list[tuple[Callable[[], Any], str]] = [
    (lambda: None, "NoneType was built instead of an nn.Module"),
    (partial(nn.LazyLinear, 2), "'weight' has no shape: give lazy layers their sizes"),
    (partial(nn.Embedding, 2, 2, sparse=True), "'Embedding' makes sparse gradients: give"),
    (partial(nn.EmbeddingBag, 2, 2, max_norm=1.0), "changes its weights in forward"),
    (_Extra, r"state_dict\(\) has '_extra_state', dict instead of a tensor"),
    (partial(_Odd, _complex, torch.relu), "'weight' is complex: keep torch.view_as_real of it"),
    (partial(_Odd, _real, lambda x: [x]), r"unit odd returned list instead of .* \(x\)$"),
    (partial(_Odd, _real, lambda x: (x, x)), "unit odd returned Tensor, Tensor instead of"),
    (partial(_Odd, _real, lambda x: None), "unit odd returned NoneType instead of"),
]


@pytest.mark.parametrize(("build", "problem"), ODD)
def test_what_a_worker_could_not_train_is_found(build: Callable[[], Any], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        trace([Unit("odd", build)], {"x": ValueSpec((2,), torch.float32)})


class _Drawing(nn.Identity):
    """Multiplies by a random number, always or only in training."""

    def __init__(self, draw: Callable[[], float], always: bool) -> None:
        super().__init__()
        self.draw, self.always = draw, always

    def forward(self, x: Tensor) -> Tensor:
        return x * self.draw() if self.always or self.training else x


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize(
    ("draw", "library"),
    [(random.random, "random"), (np.random.rand, r"numpy\.random"), (np.random.randn, "numpy")],
)
def test_only_random_numbers_of_torch_are_equal_under_each_schedule(
    draw: Callable[[], float], library: str, always: bool
) -> None:
    unit = Unit("noisy", partial(_Drawing, draw, always))
    with pytest.raises(TypeError, match=rf"^forward\(\) draws random numbers with {library}"):
        trace([unit], {"x": ValueSpec((2,), torch.float32)})


class _InTraining(nn.Module):
    """A network that applies a function only in training."""

    def __init__(self, act: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return self.act(x) if self.training else x


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (lambda x: torch.cat([x, x], 1), r"float32 \[7, 4\] in training, and as .* \[7, 2\] in"),
        (lambda x: x[1:], r"float32 \[6, 2\] in training"),
        (lambda x: x.double(), r"writes 'x' as torch.float64 \[7, 2\] in training"),
        (lambda x: x[:, :1], ""),
        (lambda x: x * x.sum().item(), ""),  # reads a value
    ],
)
def test_outputs_in_training_fit_into_those_of_evaluation(
    act: Callable[[Tensor], Any], problem: str
) -> None:
    specs = {"x": ValueSpec((2,), torch.float32)}
    unit = Unit("odd", partial(_InTraining, act))
    found = problem_of(unit, specs, trace([unit], specs)[0].outputs)
    assert re.search(problem, found)
    assert bool(found) == bool(problem)


def test_a_unit_returns_the_same_number_of_tensors_in_training() -> None:
    specs = {"x": ValueSpec((2,), torch.float32)}
    unit = Unit("odd", partial(_InTraining, lambda x: (x, x)))
    with pytest.raises(TypeError, match="unit odd returned Tensor, Tensor instead of") as caught:
        problem_of(unit, specs, trace([unit], specs)[0].outputs)
    assert caught.value.__notes__ == ["in training mode"]


@pytest.mark.parametrize(
    "run",
    [lambda x: x + torch.ones(2), lambda x: x * x.sum().item(), lambda x: x[x.sum(1) > 0]],
)
def test_errors_of_the_meta_device_say_what_it_is(run: Callable[[Tensor], Any]) -> None:
    """Users had not heard of this device when they read of it in a message."""
    with pytest.raises((RuntimeError, NotImplementedError)) as caught:
        trace([Unit("odd", partial(_Odd, _real, run))], {"x": ValueSpec((2,), torch.float32)})
    (note,) = caught.value.__notes__
    assert "make tensors on the device of an input" in note


def test_initial_weights_may_come_from_numpy() -> None:
    """Such weights are new at each call of `build`, but not on the meta device, as other ones."""

    def build() -> nn.Module:
        layer = nn.Linear(3, 4)
        layer.weight = nn.Parameter(torch.from_numpy(np.random.rand(4, 3).astype(np.float32)))
        return layer

    (found,) = trace([Unit("numpy", build)], {"x": ValueSpec((3,), torch.float32)})
    assert (found.outputs[0].shape, found.cost.params) == ((4,), 16)


def test_a_unit_may_return_a_view_of_its_weight() -> None:
    """Torch's counter of operations fails for such a view if the weight needs a gradient."""
    unit = Unit("position", _Position, writes=("x", "position"))
    (found,) = trace([unit], {"x": ValueSpec((3,), torch.float32)})
    assert [spec.shape for spec in found.outputs] == [(3,), (3,)]


class _Slope(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        """Return the gradient of the outputs' sum with respect to the input."""
        with torch.enable_grad():
            read = x.detach().requires_grad_()
            return torch.autograd.grad(self[0](read).sin().sum(), read)[0]


def test_a_forward_may_compute_gradients() -> None:
    """The counter's hooks once refused this."""
    inputs = empty(ValueSpec((3,), torch.float32))
    result, cost = measure(lambda: _Slope(nn.Linear(3, 5)), lambda module: module(inputs))
    assert isinstance(result, Tensor)
    assert result.shape == (1, 3)
    assert cost.flops == 2 * (2 * 3 * 5)  # of the forward, and of the gradient


class _Position(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), self.bias.expand(len(x), -1)
