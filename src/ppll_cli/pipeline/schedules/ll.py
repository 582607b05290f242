"""Sequential local learning on one device."""

from ppll_cli.pipeline.schedules.ppll import PPLL


class LocalLearning(PPLL):
    """PPLL with a single stage: the same training on one device."""

    one_stage = True
