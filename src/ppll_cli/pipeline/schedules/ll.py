"""Sequential local learning on one device."""

from ppll_cli.pipeline.schedules.ppll import PPLL


class LocalLearning(PPLL):
    """The training that PPLL does, on one device: PPLL with a single stage."""

    one_stage = True
