"""Adds the instructions that send a unit's weights to losses of earlier modules."""

from collections.abc import Iterable

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place


def weights(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Add the instructions that send weights of a later unit to the loss of an earlier module.

    A stage sends a unit's weights after each optimizer step of the chunk with the unit. The stage
    with the loss waits for them before the forward pass of its chunk. This is only for training. In
    evaluation, the loss uses the weights that it got for the last training batch.
    """
    chunks, watches = place.routes.layout.chunks, place.routes.watches
    holders = {watcher: place.routes.watched(watcher) for watcher in watches}
    found: Stream = []
    for instruction in stream:
        if isinstance(instruction, do.Forward) and instruction.micro_batch == 0:
            chunk = instruction.chunk
            if chunk in watches:
                source, ahead = chunks[holders[chunk]].stage, watches[chunk].ahead
                if source == place.stage:
                    found.append(do.ReadWeights(chunk))
                else:
                    found.append(do.ReceiveWeights(source, chunk, ahead))
        found.append(instruction)
        if isinstance(instruction, do.Step):
            for watcher, holder in holders.items():
                target = chunks[watcher].stage
                if holder == instruction.chunk and target != place.stage:
                    found.append(do.SendWeights(target, watcher, watches[watcher].ahead))
    return found
