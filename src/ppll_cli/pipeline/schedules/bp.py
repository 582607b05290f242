"""Back-propagation on one device."""

from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB


class BackPropagation(OneFOneB):
    """Back-propagation on one device: 1F1B with a single stage.

    Gradients accumulate over the micro-batches. Each backward comes right after its forward, so
    only the activations of one micro-batch are in memory at any time. M = 4 micro-batches (F
    forward, B backward, S step)::

        stage 0 | F0 B0 F1 B1 F2 B2 F3 B3 S
    """

    one_stage = True
