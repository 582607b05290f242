"""Adds the instructions that free the slots of received messages as early as possible."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place

Received = do.ReceiveActivations | do.ReceiveGradients
Held = dict[tuple[int, int, str], Received]
"""Maps a tensor (its chunk, micro-batch and name) to the instruction that received it."""


def release(place: Place, stream: Sequence[do.Instruction]) -> Stream:
    """Add a `Release` of each slot after the last instruction that reads any tensor in the slot.

    If a chunk passes a tensor on unchanged to the next chunk of this stage, the tensor stays in its
    slot until later chunks of this stage have read or sent it.
    """
    ends: dict[do.Release, list[int]] = defaultdict(list)
    for received, last in _last_reads(place, stream).items():
        gradients = isinstance(received, do.ReceiveGradients)
        kind: do.Kind = "gradients" if gradients else "activations"
        ends[do.Release(received.peer, received.chunk, kind)].append(last)
    after: dict[int, Stream] = defaultdict(list)
    for back, indices in sorted(ends.items(), key=lambda item: item[0].kind, reverse=True):
        for index in indices:
            after[index].append(back)
    return [each for index, own in enumerate(stream) for each in (own, *after[index])]


def _last_reads(place: Place, stream: Sequence[do.Instruction]) -> dict[Received, int]:
    """Return, for each received message, the index of the last instruction that reads it."""
    routes = place.routes
    last: dict[Received, int] = {}
    tensors: Held = {}
    gradients: Held = {}

    def reads(index: int, held: Held, chunk: int, micro_batch: int, names: Iterable[str]) -> None:
        keys = [(chunk, micro_batch, name) for name in names]
        last.update({held[key]: index for key in keys if key in held})

    def hand_on(held: Held, source: int, target: int, m: int, names: Iterable[str]) -> None:
        both = [((source, m, name), (target, m, name)) for name in names]
        held.update({new: held[old] for old, new in both if old in held})

    def through(chunk: int) -> frozenset[str]:
        # If a chunk passes a tensor on unchanged, the gradient that the chunk sends back for this
        # tensor may be the received gradient itself, which is still in its slot.
        return routes.passing(chunk) & {*routes.out_of(chunk).gradients}

    for index, instruction in enumerate(stream):
        match instruction:
            case do.ReceiveActivations(_, chunk, m):
                last[instruction] = index
                tensors.update({(chunk, m, name): instruction for name in routes.into[chunk].names})
            case do.ReceiveGradients(_, chunk, m):
                last[instruction] = index
                names = routes.out_of(chunk).gradients
                gradients.update({(chunk, m, name): instruction for name in names})
            case do.Forward(chunk, m):
                if chunk - 1 in place.chunks:
                    passed = routes.passing(chunk - 1) & {*routes.into[chunk].names}
                    hand_on(tensors, chunk - 1, chunk, m, passed)
                reads(index, tensors, chunk, m, routes.reads[chunk])
            case do.Loss(chunk, m) | do.Measure(chunk, m):
                reads(index, tensors, chunk, m, routes.reads[chunk])
            case do.SendActivations(_, chunk, m):
                reads(index, tensors, chunk, m, routes.passing(chunk))
            case do.Backward(chunk, m) | do.BackwardInput(chunk, m) | do.BackwardWeight(chunk, m):
                reads(index, tensors, chunk, m, routes.reads[chunk])
                if chunk + 1 in place.chunks:
                    hand_on(gradients, chunk + 1, chunk, m, through(chunk + 1))
                reads(index, gradients, chunk, m, routes.out_of(chunk).gradients)
            case do.SendGradients(_, chunk, m):
                reads(index, gradients, chunk, m, through(chunk))
    return last
