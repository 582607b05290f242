"""Sequential local learning on one device."""

from ppll_cli.pipeline.schedules.ppll import PPLL


class LocalLearning(PPLL):
    """PPLL with a single stage: one device trains all modules, one after another."""

    one_stage = True
