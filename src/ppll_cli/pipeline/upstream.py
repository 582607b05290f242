"""Adds the instructions that send a unit's weights to losses of earlier modules."""

from collections.abc import Iterable

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place


def weights(place: Place, stream: Iterable[do.Instruction]) -> Stream:
    """Add the instructions by which losses of earlier modules get weights of later units.

    A stage sends a unit's weights after the optimizer step of the unit's chunk. The receiving stage
    waits for the weights before the first forward of the chunk whose loss reads them. Evaluation
    sends no weights: the loss uses the weights of the last training batch.
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
