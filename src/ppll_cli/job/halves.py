"""A backward in two halves: to the inputs now, and to the parameters later.

The half to the inputs passes every operation between outputs and inputs. Where one of them has
parameters, as a convolution or a matrix product has, the gradient that arrives there is kept. The
half to the parameters starts from these gradients, so it repeats nothing that the first half has
computed::

    inputs <── matmul <── gelu <── matmul <── outputs      backward_to_inputs
                  │                   │
               weights             weights                 WeightHalf.run

Every operation gets the same numbers as in a whole backward, and what a whole backward adds up
before it adds it to a gradient is added up in one call of autograd here. So the bits are the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

_Start = tuple[GradientEdge, Tensor]
"""Where a backward begins, and the gradient with which it does."""


class _Call(NamedTuple):
    """A call of autograd: from where, to which weights, and whether the graph is needed again."""

    starts: Sequence[_Start]
    weights: Sequence[Tensor]
    retain: bool


class WeightHalf:
    """The half of a backward that is left when the gradients of the inputs are there.

    It holds the graph of the forward until it has run.
    """

    def __init__(self, calls: Sequence[_Call] = ()) -> None:
        self._calls = calls

    def run(self) -> None:
        """Add to the gradients of the weights. It can run once."""
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
    """Compute the gradients of the inputs, in one call of autograd.

    Args:
        outputs: Where the backward begins.
        gradients: Of the outputs.
        inputs: Leaves of the graph.
        weights: Leaves of the graph, none of them an input.

    Returns:
        What computes the gradients of the weights.
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
    # The calls that pass the whole graph come first, for the others free what they pass.
    calls = [_Call(starts, graph.tensors(group), True) for group in repeated]
    calls += [
        _Call(group.starts(), graph.tensors(group), False)
        for group in groups
        if group not in repeated
    ]
    return WeightHalf([call for call in calls if call.starts])


@dataclass(eq=False)
class _Group:
    """Weights whose gradients have to come from one call, since operations share them.

    Attributes:
        weights: The nodes that add to their gradients.
        nodes: The operations on the way to the inputs that use the weights.
        given: Starts at outputs that depend on the weights and on no input.
    """

    weights: set[Node] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)
    given: list[_Start] = field(default_factory=list)
    _kept: dict[Node, Sequence[Tensor | None]] = field(default_factory=dict)

    def keep(self, node: Node, gradients: Sequence[Tensor | None]) -> None:
        """Keep the gradients that have arrived at one of the nodes."""
        self._kept[node] = gradients

    def starts(self) -> list[_Start]:
        """Where the call begins."""
        arrived = [
            (GradientEdge(node, number), gradient)
            for node in self.nodes
            for number, gradient in enumerate(self._kept.get(node, ()))
            if gradient is not None
        ]
        return self.given + arrived


class _Graph:
    """What autograd has recorded between outputs and leaves.

    Args:
        roots: The nodes of the outputs.
        inputs: Leaves.
        weights: Leaves.
    """

    def __init__(
        self, roots: Sequence[Node], inputs: Iterable[Tensor], weights: Iterable[Tensor]
    ) -> None:
        self._next = _walk(roots)
        self._to_inputs: set[Node] = set()
        self._weights: dict[Node, Tensor] = {}
        self._own: dict[Node, set[Node]] = {}  # weights behind a node that no input's way leads to
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
        """The groups of weights, those near the outputs first."""
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
        """Groups one of whose operations leads to another one, as a loop in a unit has them.

        What has arrived at the first one holds in part what arrives at the second one, so their
        call has to begin at the outputs.
        """
        many = [group for group in groups if len(group.nodes) > 1]
        bits = {node: 1 << number for number, group in enumerate(many) for node in group.nodes}
        met: dict[Node, int] = {}  # the groups that a node leads to
        found = 0
        for node, following in self._next.items() if many else ():
            behind = 0
            for other in following:
                behind |= met[other]
            found |= behind & bits.get(node, 0)
            met[node] = behind | bits.get(node, 0)
        return [group for number, group in enumerate(many) if found >> number & 1]

    def tensors(self, group: _Group) -> list[Tensor]:
        """The weights of a group."""
        return [self._weights[node] for node in group.weights]


def _walk(roots: Sequence[Node]) -> dict[Node, list[Node]]:
    """All nodes that roots lead to and what follows each, every one behind those that follow it."""
    found: dict[Node, list[Node]] = {}
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
