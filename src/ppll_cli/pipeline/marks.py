"""The instructions for a mark, which asks each stage to report, save or end between two batches."""

from ppll_cli.pipeline import instructions as do
from ppll_cli.pipeline.instructions import Stream
from ppll_cli.pipeline.schedule import Place


def mark(place: Place, what: do.Mark) -> Stream:
    """Return a stage's instructions for a mark: receive it, send it to later stages, act on it.

    Stages send the mark before they act on it, so all stages act on it in parallel.
    """
    # A mark reaches a stage, as batches do, through the channel to the stage's lowest chunk.
    layout = place.routes.layout
    lowest = [min(layout.of(stage)) for stage in range(layout.stages)]
    own = lowest[place.stage]
    stream: Stream = [do.ReceiveMark(layout.chunks[own - 1].stage, own)] if own else []
    for stage, chunk in enumerate(lowest):
        if chunk and layout.chunks[chunk - 1].stage == place.stage:
            stream.append(do.SendMark(stage, chunk - 1))
    return [*stream, what]
