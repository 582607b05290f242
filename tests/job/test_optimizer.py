"""Optimizers, compared with their formulas in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.config.sections import Optim
from ppll_cli.job.optimizer import FusedOptimizer, clip, squared_norm

PLAIN: dict[str, Any] = {
    "name": "sgd",
    "lr": 0.1,
    "weight_decay": 0.0,
    "betas": [0.8, 0.9],
    "schedule": "constant",
    "warmup_epochs": 0,
    "milestones": [],
    "gamma": 0.1,
    "clip_norm": None,
}
RATES = [0.1, 0.05, 0.02]  # it changes between steps
START = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
GRADIENTS = [
    torch.tensor(values, dtype=torch.float64)
    for values in ([0.5, 1.0, -3.0], [-0.25, 2.0, 0.125], [4.0, -1.0, 0.0])
]


def trained(optim: Optim) -> Tensor:
    parameter = nn.Parameter(START.clone())
    optimizer = FusedOptimizer(optim, [parameter])
    for rate, gradient in zip(RATES, GRADIENTS, strict=True):
        parameter.grad = gradient.clone()
        optimizer.step(rate)
    return parameter.detach()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.75, False), (0.75, True)])
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_sgd_follows_its_formula(momentum: float, nesterov: bool, decay: float) -> None:
    expected, speed = START, torch.zeros_like(START)
    for rate, gradient in zip(RATES, GRADIENTS, strict=True):
        gradient = gradient + decay * expected
        speed = momentum * speed + gradient
        expected = expected - rate * (gradient + momentum * speed if nesterov else speed)
    optim = Optim(**PLAIN | {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay})
    torch.testing.assert_close(trained(optim), expected)


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_adamw_follows_its_formula(decay: float) -> None:
    expected = START
    mean = square = torch.zeros_like(START)
    for step, (rate, gradient) in enumerate(zip(RATES, GRADIENTS, strict=True), start=1):
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        unbiased, scale = mean / (1 - 0.8**step), (square / (1 - 0.9**step)).sqrt()
        expected = (1 - rate * decay) * expected - rate * unbiased / (scale + 1e-8)
    torch.testing.assert_close(
        trained(Optim(**PLAIN | {"name": "adamw", "weight_decay": decay})), expected
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_does_not_depend_on_the_other_parameters(name: str) -> None:
    """The bits are equal, because the grouping of modules into stages must not matter."""
    optim = Optim(**PLAIN | {"name": name, "momentum": 0.9, "weight_decay": 0.1})
    sizes = [1, 3, 64, 1000]
    values, gradients = ([torch.randn(size) for size in sizes] for _ in range(2))

    def stepped(indices: Sequence[int]) -> list[Tensor]:
        parameters = [nn.Parameter(values[i].clone()) for i in indices]
        optimizer = FusedOptimizer(optim, parameters)
        for _ in range(3):
            for i, parameter in zip(indices, parameters, strict=True):
                parameter.grad = gradients[i].clone()
            optimizer.step(0.1)
        return [parameter.detach() for parameter in parameters]

    together = stepped(range(len(sizes)))
    for index, expected in enumerate(together):
        assert torch.equal(stepped([index])[0], expected)


TORCH: list[tuple[dict[str, Any], Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = [
    (
        {"name": "adamw", "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.9), weight_decay=0.1, fused=True),
    ),
    (
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        lambda p: torch.optim.SGD(
            p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True
        ),
    ),
    ({"momentum": 0.0, "nesterov": False}, lambda p: torch.optim.SGD(p, 0.1, fused=True)),
]
SIZES = [1, 3, 64, 1000]


@pytest.mark.parametrize(("changed", "torch_optimizer"), TORCH, ids=["adamw", "nesterov", "sgd"])
def test_weights_and_states_have_the_bits_of_torch(
    changed: dict[str, Any], torch_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    """There are two dtypes, and some parameters lack a gradient in some steps.

    With AdamW, one parameter also starts later. torch's SGD cannot begin the momentum of some
    parameters later than that of others.
    """
    late = changed.get("name") == "adamw"
    values = [torch.randn(n, dtype=torch.float64 if n == 3 else None) for n in SIZES]
    ours, theirs = ([nn.Parameter(x.clone()) for x in values] for _ in range(2))
    mine, other = FusedOptimizer(Optim(**PLAIN | changed), ours), torch_optimizer(theirs)
    for step in range(6):
        for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            absent = (index == 2 and step in (2, 4)) or (late and index == 3 and step < 2)
            gradient = torch.randn_like(one)
            one.grad = None if absent else gradient.clone()
            two.grad = None if absent else gradient.clone()
        for group in other.param_groups:
            group["lr"] = 0.1 / (step + 1)
        mine.step(0.1 / (step + 1))
        other.step()
    for one, two in zip(ours, theirs, strict=True):
        assert torch.equal(one, two)
        wanted = {k: v for k, v in other.state[two].items() if v is not None}
        assert list(mine.state[one]) == list(wanted)
        assert all(torch.equal(mine.state[one][key], value) for key, value in wanted.items())


@pytest.mark.parametrize("changed", [each for each, _ in TORCH], ids=["adamw", "nesterov", "sgd"])
@pytest.mark.parametrize("skipped", [0, 2])
def test_a_step_skipped_on_the_device_changes_nothing(
    changed: dict[str, Any], skipped: int
) -> None:
    def trained(skips: bool) -> tuple[list[nn.Parameter], FusedOptimizer]:
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.ones(n)) for n in SIZES]
        optimizer = FusedOptimizer(Optim(**PLAIN | changed), parameters)
        for step in range(4):
            flag = torch.tensor(float(step == skipped))
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                if flag:
                    parameter.grad.fill_(float("nan"))
            if skips or not flag:
                optimizer.step(0.1, flag if skips else None)
        return parameters, optimizer

    (ours, mine), (expected, other) = trained(skips=True), trained(skips=False)
    for one, two in zip(ours, expected, strict=True):
        assert torch.equal(one, two)
        for key, value in other.state[two].items():
            assert torch.equal(mine.state[one][key], value)


@pytest.mark.parametrize("changed", [each for each, _ in TORCH[:2]], ids=["adamw", "nesterov"])
def test_the_next_step_uses_a_restored_state(changed: dict[str, Any]) -> None:
    """The optimizer has already grouped the states of earlier steps."""
    parameter = nn.Parameter(START.clone())
    optimizer = FusedOptimizer(Optim(**PLAIN | changed), [parameter])

    def stepped(number: int) -> Tensor:
        parameter.grad = GRADIENTS[number].clone()
        optimizer.step(0.1)
        return parameter.detach().clone()

    saved = stepped(0)
    state = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    expected = stepped(1)
    stepped(2)
    optimizer.restore(parameter, state)
    with torch.no_grad():
        parameter.copy_(saved)
    assert torch.equal(stepped(1), expected)


def test_a_parameter_that_is_given_twice_is_stepped_once() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = FusedOptimizer(
        Optim(**PLAIN | {"momentum": 0.0, "nesterov": False}), [parameter] * 2
    )
    parameter.grad = torch.ones(1)
    optimizer.step(0.25)
    assert parameter.item() == 0.75


def with_gradients(*gradients: list[float] | None) -> list[nn.Parameter]:
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(len(gradient or [0.0])))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        parameters.append(parameter)
    return parameters


def test_the_squared_norm_sums_all_gradients() -> None:
    squared = squared_norm(with_gradients([3.0, 0.0], None, [4.0], [12.0]))
    assert squared.dtype == torch.float64
    assert squared.shape == ()
    assert squared.item() == 169.0


def test_the_squared_norm_without_gradients_is_zero() -> None:
    assert squared_norm(with_gradients(None)).item() == 0.0
    assert squared_norm([]).item() == 0.0


def test_clipping_scales_gradients_down_to_the_limit() -> None:
    parameters = with_gradients([3.0, 0.0], None, [4.0])
    clip(parameters, 1.0, squared_norm(parameters))
    assert squared_norm(parameters).item() == pytest.approx(1.0, rel=1e-5)
    assert parameters[0].grad is not None
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]))


def test_clipping_may_use_a_norm_of_more_parameters() -> None:
    parameters = with_gradients([3.0])
    clip(parameters, 1.0, torch.tensor(100.0, dtype=torch.float64))
    assert parameters[0].grad is not None
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.3]))


def test_clipping_changes_no_bit_below_the_limit() -> None:
    gradient = torch.randn(100).tolist()
    parameters = with_gradients(gradient)
    clip(parameters, 1e3, squared_norm(parameters))
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == gradient
