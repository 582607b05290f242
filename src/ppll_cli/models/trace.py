"""Finds the costs of units and the shapes of their outputs on the meta device, without values."""

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ppll_cli.errors import noted
from ppll_cli.leaves.random_states import noticed_draws
from ppll_cli.leaves.values import ValueSpec, empty, spec_of
from ppll_cli.models.counters import counters
from ppll_cli.models.fitness import (
    check_evaluation,
    check_network,
    check_own,
    in_both,
    uses_others,
)
from ppll_cli.models.unit import Unit

ODD = 7
"""A number of samples that is hardly ever the size of another dimension of a tensor."""


@dataclass(frozen=True)
class Cost:
    """The number of parameters of a network and the cost of its forward pass.

    Attributes:
        params: Number of parameters, including frozen ones.
        flops: Floating-point operations for one sample, counted by torch. A multiplication and an
            addition are two operations.
        single_valued: Names of the BatchNorm layers that get one value per channel and sample. They
            cannot be trained on a single sample.
    """

    params: int
    flops: int
    single_valued: tuple[str, ...]


@dataclass(frozen=True)
class TracedUnit:
    """The outputs and cost of a unit for one sample, and how it treats its inputs.

    Attributes:
        outputs: Shapes and dtypes of the unit's outputs, in the order of `writes`.
        cost: Cost of the unit.
        changed: Indices of the inputs that the unit changes in place.
        shared: (index of the input, index of the output) for each output that is an input or a
            view of an input.
        counters: Names of the network's Python attributes that change in each forward pass in
            training. Checkpoints do not contain them, so the user gets a note.
    """

    outputs: tuple[ValueSpec, ...]
    cost: Cost
    changed: tuple[int, ...]
    shared: tuple[tuple[int, int], ...]
    counters: tuple[str, ...]


@contextmanager
def _without_compiler() -> Iterator[None]:
    # torch excludes its dispatch modes, and many functions for the meta device, from compilation.
    # The decorator for this imports the compiler, which takes half as long as importing torch.
    stand_in = _Uncompiled(_COMPILER)
    sys.modules.setdefault(_COMPILER, stand_in)
    try:
        yield
    finally:
        stand_in.leave()


_COMPILER = "torch._dynamo"


class _Uncompiled(ModuleType):
    def disable(self, function: Any = None, *args: Any, **options: Any) -> Any:
        if str(getattr(function, "__module__", None)).startswith("torch."):
            return function
        return self.__getattr__("disable")(function, *args, **options)

    def leave(self) -> None:
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(importlib.import_module(_COMPILER), name)


class _NoModules(nullcontext[None]):
    # Replaces the module tracker of torch's FLOP counter. The tracker's hooks fail if a forward
    # pass computes gradients by `torch.autograd.grad`, or returns a view of a weight.
    parents = frozenset({"Global"})


@_without_compiler()
def measure(
    build: Callable[[], nn.Module], run: Callable[[nn.Module], object]
) -> tuple[object, Cost]:
    """Build a network on the meta device, run it once in evaluation mode, and count its cost.

    Args:
        build: Makes the network.
        run: Calls the network with inputs on the meta device.

    Returns:
        The result of `run`, and the cost.

    Raises:
        TypeError: The network cannot be trained, or draws random numbers without torch. Exceptions
            of `build` and `run` are passed on.
    """
    with explained():
        with torch.device("meta"):
            module = build()
        check_network(module)
        check_own(module, build)
    module.eval()
    single_valued: list[str] = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):

            def note(layer: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                if inputs[0].numel() == inputs[0].shape[0] * inputs[0].shape[1]:
                    check_evaluation(name, layer)
                    single_valued.append(name)

            layer.register_forward_pre_hook(note)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with torch.no_grad(), counter, explained(), _drawing_with_torch():
        result = run(module)
    params = sum(parameter.numel() for parameter in module.parameters())
    return result, Cost(params, counter.get_total_flops(), tuple(single_valued))


@contextmanager
def explained() -> Iterator[None]:
    """Add a note to an exception of a user's code if its message mentions the meta device."""
    try:
        yield
    except Exception as error:
        if re.search(r"(\b|_)meta(\b|_)", str(error)):
            error.add_note(
                "each network is first built and run, with its loss, on torch's meta device, which "
                "has shapes but no values: build() must make its own parameters; forward() and the "
                "loss must make tensors on the device of an input, must not read values, and must "
                "not make shapes that depend on values"
            )
        raise


@contextmanager
def _drawing_with_torch() -> Iterator[None]:
    with noticed_draws() as drawn:
        yield
    if drawn:
        raise TypeError(
            f"forward() draws random numbers with {drawn[0]}: draw them with torch, for example "
            "torch.rand(()), because only torch's random numbers are equal under each schedule "
            "and after a resume"
        )


def trace(units: Sequence[Unit], batch: Mapping[str, ValueSpec]) -> list[TracedUnit]:
    """Pass one sample through the model on the meta device; return each unit's outputs and cost.

    `batch` has the shape and dtype of each tensor of a batch, by name.

    Raises:
        TypeError: A unit's network cannot be trained, draws random numbers without torch, or does
            not return the tensors of `writes`.
    """
    specs = dict(batch)
    traced = []
    for unit in units:
        inputs, outputs, cost = _run(unit, specs)
        made = {name: spec_of(tensor) for name, tensor in outputs.items()}
        trained = _run_in_training(unit, specs)
        both = enumerate(zip(inputs, trained.inputs, strict=True))
        changed = tuple(number for number, (x, y) in both if x._version or y._version)
        shared = _shared(inputs, outputs.values())
        traced.append(TracedUnit(tuple(made.values()), cost, changed, shared, trained.counters))
        specs.update(made)
    return traced


def _run(
    unit: Unit, specs: Mapping[str, ValueSpec], samples: int = 1
) -> tuple[list[Tensor], dict[str, Tensor], Cost]:
    inputs = [empty(specs[name], samples) for name in unit.reads]
    result, cost = measure(unit.build, lambda module: module(*inputs))
    return inputs, unit.written(result), cost


class _Trained(NamedTuple):
    inputs: list[Tensor]
    results: list[Any]  # empty if the unit raises, for example because meta tensors have no values
    counters: tuple[str, ...]


@_without_compiler()
def _run_in_training(unit: Unit, specs: Mapping[str, ValueSpec]) -> _Trained:
    # Some things happen only in training: for example, an in-place dropout changes its input.
    inputs = [empty(specs[name], ODD) for name in unit.reads]
    results: list[Any] = []

    def run() -> None:
        with suppress(Exception):
            results.append(module(*inputs))

    with torch.no_grad():
        with torch.device("meta"):
            module = unit.build().train()
        with _drawing_with_torch():
            found = counters(module, run)
    return _Trained(inputs, results[:1], found)


def _shared(inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    read, made = ([x.untyped_storage()._cdata for x in tensors] for tensors in (inputs, outputs))
    return tuple((i, o) for i, x in enumerate(read) for o, y in enumerate(made) if x == y)


@_without_compiler()
def problem_of(unit: Unit, specs: Mapping[str, ValueSpec], one_sample: Sequence[ValueSpec]) -> str:
    """Return why the program cannot train a unit; "" if it can.

    These conditions are checked:

    - Each call of the unit's `build` makes new weights.
    - The network that `build` returns computes only with its own weights.
    - The first dimension of each output is the batch. No other dimension depends on the batch size.
    - Each output has the same dtype in training as in evaluation, and not more elements.

    Args:
        unit: The unit to check.
        specs: Shapes and dtypes of the tensors that the unit may read, by name.
        one_sample: Shapes and dtypes of the unit's outputs for one sample.

    Raises:
        TypeError: In training, the unit does not return the tensors of its `writes`.
    """
    with torch.device("meta"):
        one, other = unit.build(), unit.build()
    if kept := in_both(one, other):
        return (
            f"has the same {next(iter(kept))!r} after two calls of its build(); build() must make "
            "new weights at each call, and units cannot share weights"
        )
    if uses_others(one, [empty(specs[name], ODD) for name in unit.reads]):
        return (
            "computes with a parameter that is not among the parameters() of the network that its "
            "build() returns; build() must make all parameters, as attributes or in an "
            "nn.ModuleList, and units cannot share weights"
        )
    outputs = _run(unit, specs, samples=ODD)[1]
    for (name, output), one_made in zip(outputs.items(), one_sample, strict=True):
        shapes = f"writes {name!r} with shape {list(output.shape)} for {ODD} samples"
        if output.shape[:1] != (ODD,):
            return f"{shapes}; the first dimension must be the batch, for example by expand()"
        if output.shape[1:] != one_made.shape:
            shapes += f" and {[1, *one_made.shape]} for one"
            return f"{shapes}; only the first dimension may depend on the number of samples"
    for result in _run_in_training(unit, specs).results:
        with noted("in training mode"):
            trained = unit.written(result)
        for (name, output), evaluated in zip(trained.items(), outputs.values(), strict=True):
            if (
                output.shape[:1] != (ODD,)
                or output.dtype != evaluated.dtype
                or output.numel() > evaluated.numel()
            ):
                return (
                    f"writes {name!r} as {_form(output)} in training, and as {_form(evaluated)} in "
                    f"evaluation, for {ODD} samples; in training a tensor needs the same dtype "
                    "and number of samples as in evaluation, and at most as many elements"
                )
    return ""


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
