"""The optimizer of a group of parameters."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppll_cli.config.settings import Optim

log = logging.getLogger(__name__)

State = dict[str, Tensor]

ADAM_EPSILON = 1e-8


@dataclass
class _Group:
    """Parameters that one call of a kernel steps: of one device and dtype, all with a gradient.

    Attributes:
        indices: Their numbers among all parameters.
        parameters: Themselves.
        states: For each key of their states, those of all of them, in their order.
        counts: AdamW: the steps of all of them in one vector; `states["step"]` are views of it.
        first: SGD: none of them has a momentum yet.
    """

    indices: list[int]
    parameters: list[Tensor]
    states: dict[str, list[Tensor]]
    counts: Tensor | None = None
    first: bool = False


class FusedOptimizer:
    """SGD or AdamW by torch's fused kernels. A parameter's step depends on that parameter alone.

    The bits are those of `torch.optim` with `fused=True`, and states have the same names and
    values. The kernels are called directly, because `torch.optim` collects and groups its tensors
    anew in each step, which takes the host longer than the kernel itself. They are private in
    torch, but are what `torch.optim` calls in 2.11 to 2.14.

    Args:
        optim: Which optimizer, with its settings.
        parameters: What it steps; a parameter that is listed twice is stepped once.

    Attributes:
        parameters: Each of them once.
        state: Of each parameter that has been stepped, tensors by name.
    """

    def __init__(self, optim: Optim, parameters: Iterable[nn.Parameter]) -> None:
        self._optim = optim
        self.parameters = list(dict.fromkeys(parameters))
        self.state: dict[nn.Parameter, State] = {}
        self._groups: list[_Group] = []
        self._grouped: list[bool] | None = None

    def restore(self, parameter: nn.Parameter, state: State) -> None:
        """Take a parameter's state from a checkpoint; where it is empty, there was no step yet."""
        if state:
            self.state[parameter] = state
            self._grouped = None

    def step(self, rate: float, nonfinite: Tensor | None = None) -> None:
        """Step all parameters that have a gradient.

        Args:
            rate: The learning rate.
            nonfinite: A float32 scalar on the device. Where it is 1, parameters, states and step
                counts are left as they are; the host does not need to know.
        """
        gradients = [parameter.grad for parameter in self.parameters]
        present = [gradient is not None for gradient in gradients]
        if present != self._grouped:  # mostly all have one, in each step
            self._groups = self._group(present)
            self._grouped = present
        kernel = self._adamw if self._optim.name == "adamw" else self._sgd
        with torch.no_grad():
            for group in self._groups:
                own = [gradient for i in group.indices if (gradient := gradients[i]) is not None]
                kernel(group, own, rate, nonfinite)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def _adamw(
        self, group: _Group, gradients: list[Tensor], rate: float, nonfinite: Tensor | None
    ) -> None:
        assert group.counts is not None
        group.counts.add_(1 if nonfinite is None else 1 - nonfinite)
        torch._fused_adamw_(
            group.parameters,
            gradients,
            group.states["exp_avg"],
            group.states["exp_avg_sq"],
            [],
            group.states["step"],
            lr=rate,
            beta1=self._optim.betas[0],
            beta2=self._optim.betas[1],
            weight_decay=self._optim.weight_decay,
            eps=ADAM_EPSILON,
            amsgrad=False,
            maximize=False,
            found_inf=nonfinite,
        )

    def _sgd(
        self, group: _Group, gradients: list[Tensor], rate: float, nonfinite: Tensor | None
    ) -> None:
        torch._fused_sgd_(
            group.parameters,
            gradients,
            group.states.get("momentum_buffer", []),
            weight_decay=self._optim.weight_decay,
            momentum=self._optim.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=self._optim.nesterov,
            maximize=False,
            is_first_step=group.first,
            found_inf=nonfinite,
        )
        group.first = False

    def _group(self, present: Sequence[bool]) -> list[_Group]:
        """The groups of those parameters that have a gradient; states that are missing begin."""
        found: dict[object, list[int]] = defaultdict(list)
        for index, parameter in enumerate(self.parameters):
            if present[index]:
                key = parameter.device, parameter.dtype, parameter in self.state
                found[key].append(index)
        return [self._make(indices) for indices in found.values()]

    def _make(self, indices: list[int]) -> _Group:
        parameters = [self.parameters[i] for i in indices]
        first = parameters[0] not in self.state
        if first:
            self.state.update({parameter: self._begin(parameter) for parameter in parameters})
        states = [self.state[parameter] for parameter in parameters]
        counts = None
        if self._optim.name == "adamw":  # one addition counts for all
            counts = torch.stack([state["step"] for state in states])
            for state, count in zip(states, counts.unbind(), strict=True):
                state["step"] = count
        columns = {key: [state[key] for state in states] for key in states[0]}
        return _Group(indices, [*parameters], columns, counts, first)

    def _begin(self, parameter: nn.Parameter) -> State:
        """The state before the first step, zeros, which stays where that step is skipped."""

        def zeros() -> Tensor:
            return torch.zeros_like(parameter, requires_grad=False)

        if self._optim.name == "adamw":
            count = torch.zeros((), dtype=torch.float32, device=parameter.device)
            return {"step": count, "exp_avg": zeros(), "exp_avg_sq": zeros()}
        return {"momentum_buffer": zeros()} if self._optim.momentum else {}


def squared_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The squared norm of all gradients together, a float64 scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).double().square()


def clip(parameters: Sequence[nn.Parameter], limit: float, squared: Tensor) -> None:
    """Scale gradients so that the norm, given as its square, is at most `limit`."""
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, squared.sqrt().float())


def warn_of_skipped(module: int, steps: Sequence[int], flags: Tensor) -> None:
    """Log which of a module's steps were skipped; their flags, 1 where one was, are on the CPU."""
    for step, flag in zip(steps, flags.tolist(), strict=True):
        if flag:
            log.warning("step %d of module %d is skipped", step, module)
