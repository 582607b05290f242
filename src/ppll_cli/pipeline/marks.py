"""The instructions for a mark, which asks each stage to report, save or end between two batches."""

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place


def mark(place: Place, what: do.Mark) -> Stream:
    """Return the instructions of a stage for a mark (evaluation, checkpoint or end).

    A stage first sends the mark to later stages, and then acts on it. So all stages act on it in
    parallel. Marks reach a stage through the same channel as batches: the channel to the stage's
    lowest chunk.
    """
    layout = place.routes.layout
    lowest = [min(layout.of(stage)) for stage in range(layout.stages)]
    own = lowest[place.stage]
    stream: Stream = [do.ReceiveMark(layout.chunks[own - 1].stage, own)] if own else []
    for stage, chunk in enumerate(lowest):
        if chunk and layout.chunks[chunk - 1].stage == place.stage:
            stream.append(do.SendMark(stage, chunk - 1))
    return [*stream, what]
