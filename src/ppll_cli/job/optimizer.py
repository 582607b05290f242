"""Fused SGD and AdamW, gradient norms and gradient clipping."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppll_cli.config.sections import Optim

log = logging.getLogger(__name__)

State = dict[str, Tensor]

ADAM_EPSILON = 1e-8


@dataclass
class _Group:
    indices: list[int]  # index of each parameter among all parameters
    parameters: list[Tensor]
    states: dict[str, list[Tensor]]  # state of every parameter, by name, such as "exp_avg"
    counts: Tensor | None = None  # AdamW's step counts; `states["step"]` has views of this vector
    first: bool = False  # whether no step has been done yet; only SGD uses this


class FusedOptimizer:
    """SGD or AdamW with the results of `torch.optim` (`fused=True`), but faster on the host.

    Weights and states are bit-identical, and states have the same names.

    Attributes:
        parameters: The parameters to update, each once even if it was given twice.
        state: The state tensors, by name, of each parameter that has been updated or restored.
    """

    # torch.optim collects and groups its tensors in every step, which takes longer on the host than
    # the kernel on the device. So this class calls the functions of the kernels itself. They are
    # private, but torch.optim of torch 2.11 to 2.14 calls the same functions.

    def __init__(self, optim: Optim, parameters: Iterable[nn.Parameter]) -> None:
        self._optim = optim
        self.parameters = list(dict.fromkeys(parameters))
        self.state: dict[nn.Parameter, State] = {}
        self._groups: list[_Group] = []
        self._grouped: list[bool] | None = None

    def restore(self, parameter: nn.Parameter, state: State) -> None:
        """Set a parameter's state from a checkpoint; an empty `state` changes nothing.

        The tensors are not copied, so they must be on the parameter's device.
        """
        if state:
            self.state[parameter] = state
            self._grouped = None

    def step(self, rate: float, nonfinite: Tensor | None = None) -> None:
        """Update all parameters that have a gradient, with the learning rate `rate`.

        `nonfinite` is a float32 scalar tensor on the parameters' device: 1 to skip the step, 0 to
        do it. None means 0. A skipped step changes no parameter, state or step count. The host does
        not wait for the tensor's value.
        """
        gradients = [parameter.grad for parameter in self.parameters]
        present = [gradient is not None for gradient in gradients]
        if present != self._grouped:  # rare: nearly always all parameters have gradients
            self._groups = self._group(present)
            self._grouped = present
        kernel = self._adamw if self._optim.name == "adamw" else self._sgd
        with torch.no_grad():
            for group in self._groups:
                own = [gradient for i in group.indices if (gradient := gradients[i]) is not None]
                kernel(group, own, rate, nonfinite)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
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
        found: dict[object, list[int]] = defaultdict(list)
        for index, parameter in enumerate(self.parameters):
            if present[index]:
                key = parameter.device, parameter.dtype, parameter in self.state
                found[key].append(index)
        return [self._make_group(indices) for indices in found.values()]

    def _make_group(self, indices: list[int]) -> _Group:
        parameters = [self.parameters[i] for i in indices]
        first = parameters[0] not in self.state
        if first:
            self.state.update({parameter: self._first_state(parameter) for parameter in parameters})
        states = [self.state[parameter] for parameter in parameters]
        counts = None
        if self._optim.name == "adamw":  # one addition to one vector updates all step counts
            counts = torch.stack([state["step"] for state in states])
            for state, count in zip(states, counts.unbind(), strict=True):
                state["step"] = count
        columns = {key: [state[key] for state in states] for key in states[0]}
        return _Group(indices, [*parameters], columns, counts, first)

    def _first_state(self, parameter: nn.Parameter) -> State:
        def zeros() -> Tensor:
            return torch.zeros_like(parameter, requires_grad=False)

        if self._optim.name == "adamw":
            count = torch.zeros((), dtype=torch.float32, device=parameter.device)
            return {"step": count, "exp_avg": zeros(), "exp_avg_sq": zeros()}
        return {"momentum_buffer": zeros()} if self._optim.momentum else {}


def squared_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the sum of the squares of all gradients' elements, as a float64 scalar tensor."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).double().square()


def clip(parameters: Sequence[nn.Parameter], limit: float, squared: Tensor) -> None:
    """Clip gradients in place: multiply them by `limit` / norm if the norm exceeds `limit`.

    `squared` is the square of the norm, a float64 scalar. The norm may cover more gradients than
    those of `parameters`, for example all gradients of the model.
    """
    torch.nn.utils.clip_grads_with_norm_(parameters, limit, squared.sqrt().float())


def warn_of_skipped(module: int, steps: Sequence[int], flags: Tensor) -> None:
    """Log a warning for each skipped step of a module: each step whose flag (on CPU) is 1."""
    for step, flag in zip(steps, flags.tolist(), strict=True):
        if flag:
            log.warning(
                "step %d of module %d is skipped: its gradient norm is not finite", step, module
            )
