"""Learning rates: pure functions of the step and the horizon."""

from math import cos, pi

from ppll_cli.settings import Optim


def learning_rate(optim: Optim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of the step after `step` optimizer steps.

    Args:
        optim: Settings.
        step: Optimizer steps done before.
        steps_per_epoch: Steps in an epoch.
        epochs: The horizon; what stops a run earlier does not count.
    """
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    if optim.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in optim.milestones)
        return float(optim.lr * optim.gamma**passed)
    if optim.schedule == "cosine":
        done = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
        return optim.lr * 0.5 * (1 + cos(pi * done))
    return optim.lr
