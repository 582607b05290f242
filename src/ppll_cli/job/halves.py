"""Splits a backward into two halves: first gradients of inputs, later gradients of parameters.

The first half goes through every operation between the outputs and the inputs. At each operation
that has parameters, such as a convolution or a matrix product, it stores the arriving gradient. The
second half computes the gradients of the parameters from these stored gradients. It repeats a part
of the first half only for a layer that is applied several times (see `_Graph.repeated`). This
diagram shows both halves::

    inputs <── matmul <── gelu <── matmul <── outputs      backward_to_inputs
                  │                   │
               weights             weights                 WeightHalf.run

The gradients are equal bit for bit to the gradients of a whole backward: every operation gets the
same numbers, and one call of autograd sums all contributions to a parameter before it adds the sum
to `.grad`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

_Start = tuple[GradientEdge, Tensor]
"""An edge of autograd's graph at which a backward starts, and the gradient of this edge."""


class _Call(NamedTuple):
    starts: Sequence[_Start]
    weights: Sequence[Tensor]  # the leaves whose `.grad` the call updates
    retain: bool  # whether a later call needs the graph again


class WeightHalf:
    """The second half of a backward: gradients of weights. It keeps the graph alive until `run`."""

    def __init__(self, calls: Sequence[_Call] = ()) -> None:
        self._calls = calls

    def run(self) -> None:
        """Add the gradients to `.grad` of the weights. A second call does nothing."""
        for starts, weights, retain in self._calls:
            edges, gradients = [edge for edge, _ in starts], [each for _, each in starts]
            torch.autograd.backward(edges, gradients, inputs=weights, retain_graph=retain)
        self._calls = ()


def backward_to_inputs(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Iterable[Tensor],
) -> WeightHalf:
    """Run the first half of a backward: add the gradients of the inputs to their `.grad`.

    Return the second half, whose method `run` computes the gradients of the weights.

    Args:
        outputs: The tensors at which the backward starts.
        gradients: The gradient of each output, with the output's shape and dtype.
        inputs: Leaves of the graph.
        weights: Other leaves of the graph. No input may be among them.
    """
    starts = list(zip(map(get_gradient_edge, outputs), gradients, strict=True))
    graph = _Graph([edge.node for edge, _ in starts], inputs, weights)
    groups = graph.groups(starts)
    repeated = graph.repeated(groups)
    hooks = [
        node.register_prehook(partial(group.keep, node))
        for group in groups
        for node in group.nodes
        if group not in repeated
    ]
    try:
        if inputs and outputs:
            torch.autograd.backward(outputs, gradients, inputs=inputs, retain_graph=bool(groups))
    finally:
        for hook in hooks:
            hook.remove()
    # Calls that retain the graph come first, because the other calls free it.
    calls = [_Call(starts, graph.tensors(group), True) for group in repeated]
    calls += [
        _Call(group.starts(), graph.tensors(group), False)
        for group in groups
        if group not in repeated
    ]
    return WeightHalf([call for call in calls if call.starts])


@dataclass(eq=False)
class _Group:
    # Weights that share an operation: one call of autograd must compute their gradients.
    weights: set[Node]  # the AccumulateGrad nodes of the weights
    nodes: list[Node] = field(default_factory=list)  # use the weights, and depend on an input
    given: list[_Start] = field(default_factory=list)  # outputs that depend on no input
    _kept: dict[Node, Sequence[Tensor | None]] = field(default_factory=dict)

    def keep(self, node: Node, gradients: Sequence[Tensor | None]) -> None:
        self._kept[node] = gradients

    def starts(self) -> list[_Start]:
        arrived = [
            (GradientEdge(node, number), gradient)
            for node in self.nodes
            for number, gradient in enumerate(self._kept.get(node, ()))
            if gradient is not None
        ]
        return self.given + arrived


class _Graph:
    def __init__(
        self, roots: Sequence[Node], inputs: Iterable[Tensor], weights: Iterable[Tensor]
    ) -> None:
        self._next = _walk(roots)
        self._to_inputs: set[Node] = set()
        self._weights: dict[Node, Tensor] = {}
        # For each node: the weights to which a path leads that passes no other node from which
        # an input can be reached.
        self._own: dict[Node, set[Node]] = {}
        leaves, learnt = set(map(id, inputs)), set(map(id, weights))
        for node, following in self._next.items():
            leaf = None if following else getattr(node, "variable", None)
            if id(leaf) in leaves or not self._to_inputs.isdisjoint(following):
                self._to_inputs.add(node)
            if leaf is not None and id(leaf) in learnt:
                self._weights[node] = leaf
                self._own[node] = {node}
                continue
            found = [self._own[n] for n in following if n in self._own and n not in self._to_inputs]
            if found:
                self._own[node] = set().union(*found)

    def groups(self, starts: Sequence[_Start]) -> list[_Group]:
        of: dict[Node, _Group] = {}

        def join(weights: set[Node]) -> _Group:
            joined = _Group(set(weights))
            for group in dict.fromkeys(of[weight] for weight in weights if weight in of):
                joined.weights |= group.weights
                joined.nodes += group.nodes
                joined.given += group.given
            of.update(dict.fromkeys(joined.weights, joined))
            return joined

        for start in starts:
            node = start[0].node
            if node in self._own and node not in self._to_inputs:
                join(self._own[node]).given.append(start)
        for node in reversed(self._next):
            if node in self._own and node in self._to_inputs:
                join(self._own[node]).nodes.append(node)
        return list(dict.fromkeys(of.values()))

    def repeated(self, groups: Sequence[_Group]) -> list[_Group]:
        # In the groups returned, one operation depends on another, as in `layer(layer(x))`. A
        # backward from the outer operation also reaches the inner one. So a second half that
        # started at both would count a part of the gradient twice. Instead it starts at the
        # outputs.
        many = [group for group in groups if len(group.nodes) > 1]
        bits = {node: 1 << number for number, group in enumerate(many) for node in group.nodes}
        met: dict[Node, int] = {}  # node -> bit mask of the groups that it is in or leads to
        found = 0
        for node, following in self._next.items() if many else ():
            behind = 0
            for other in following:
                behind |= met[other]
            found |= behind & bits.get(node, 0)
            met[node] = behind | bits.get(node, 0)
        return [group for number, group in enumerate(many) if found >> number & 1]

    def tensors(self, group: _Group) -> list[Tensor]:
        return [self._weights[node] for node in group.weights]


def _walk(roots: Sequence[Node]) -> dict[Node, list[Node]]:
    found: dict[Node, list[Node]] = {}  # the successors of a node come before the node
    seen: set[Node] = set()
    stack: list[tuple[Node, list[Node] | None]] = [(node, None) for node in roots]
    while stack:
        node, following = stack.pop()
        if following is not None:
            found[node] = following
        elif node not in seen:
            seen.add(node)
            following = [each for each, _ in node.next_functions if each is not None]
            stack.append((node, following))
            stack += [(each, None) for each in following if each not in seen]
    return found
