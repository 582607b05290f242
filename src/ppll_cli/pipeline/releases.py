"""Adds the instructions that free the slots of received messages as early as possible."""

from collections import defaultdict
from collections.abc import Sequence

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place

Received = do.ReceiveActivations | do.ReceiveGradients
Key = tuple[type[Received], int, int]
"""Identifies a message by its kind, the chunk that reads it, and its micro-batch."""


def release(place: Place, stream: Sequence[do.Instruction]) -> Stream:
    """Return a stage's instructions, with a `Release` for each activation or gradient message.

    The `Release` frees the message's slot. It comes right after the last instruction that reads or
    sends a tensor in the slot. This may be an instruction of another chunk of the stage, if a chunk
    passes the tensor on unchanged.
    """
    after: dict[int, list[do.Release]] = defaultdict(list)
    for received, last in _last_reads(place, stream).items():
        gradients = isinstance(received, do.ReceiveGradients)
        kind: do.Kind = "gradients" if gradients else "activations"
        after[last].append(do.Release(received.peer, received.chunk, kind))
    found: Stream = []
    for index, instruction in enumerate(stream):
        freed = sorted(after[index], key=lambda each: each.kind, reverse=True)
        found += [instruction, *freed]
    return found


def _last_reads(place: Place, stream: Sequence[do.Instruction]) -> dict[Received, int]:
    routes = place.routes
    last: dict[Received, int] = {}
    held: dict[Key, tuple[Received, frozenset[str]]] = {}  # the message, and its tensors

    def hold(index: int, received: Received, names: Sequence[str], step: int) -> None:
        # If a chunk passes a tensor on unchanged, the gradient that the chunk sends back for this
        # tensor may be the received gradient itself, which is still in its slot.
        last[received] = index
        chunk, inside = received.chunk, frozenset(names)
        while inside and chunk in place.chunks:
            held[type(received), chunk, received.micro_batch] = received, inside
            inside &= routes.passing(chunk)
            chunk += step

    def read(index: int, key: Key, names: frozenset[str]) -> None:
        if (found := held.get(key)) and found[1] & names:
            last[found[0]] = index

    for index, instruction in enumerate(stream):
        match instruction:
            case do.ReceiveActivations(_, chunk, _):
                hold(index, instruction, routes.into[chunk].names, 1)
            case do.ReceiveGradients(_, chunk, _):
                hold(index, instruction, routes.out_of(chunk).gradients, -1)
            case do.SendActivations(_, chunk, m):
                read(index, (do.ReceiveActivations, chunk, m), routes.passing(chunk))
            case do.SendGradients(_, chunk, m):
                read(index, (do.ReceiveGradients, chunk, m), routes.passing(chunk))
            case do.OfMicroBatch(chunk, m):
                read(index, (do.ReceiveActivations, chunk, m), routes.reads[chunk])
                gradients = frozenset(routes.out_of(chunk).gradients)
                read(index, (do.ReceiveGradients, chunk, m), gradients)
    return last
