"""Computes learning rates from the settings and the step."""

from math import cos, pi

from ppll_cli.config.sections import Optim


def learning_rate(optim: Optim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of the optimizer step that follows `step` earlier steps.

    `epochs` is the number of epochs in the settings, even if the run stops earlier.
    """
    if optim.schedule == "cosine_by_epoch":
        return _by_epoch(optim, step // steps_per_epoch + 1, epochs)
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


def note_on_epochs(optim: Optim, epochs: int) -> str | None:
    """Return a note for the user if `epochs` is too small for the warm-up or for all milestones.

    In all other cases, return None.
    """
    milestones = ", ".join(f"{each:g}" for each in optim.milestones)
    if optim.schedule != "cosine_by_epoch" and optim.warmup_epochs >= epochs:
        key, value, problem = "warmup_epochs", f"{optim.warmup_epochs:g}", "only rises"
        remedy = "a smaller optim.warmup_epochs"
    elif optim.schedule == "step" and all(each >= epochs for each in optim.milestones):
        key, value, problem = "milestones", f"[{milestones}]", "never falls"
        remedy = "smaller optim.milestones"
    else:
        return None
    found = f"optim.{key}={value}: with epochs={epochs} the learning rate {problem}"
    return f"{found}; give {remedy}, or more epochs"


def _by_epoch(optim: Optim, epoch: int, epochs: int) -> float:
    # As in InfoPro's code (arXiv 2101.10832): the cosine includes the warm-up, and reaches 0 in the
    # last epoch. `epoch` is counted from 1.
    rate = optim.lr * 0.5 * (1 + cos(pi * epoch / epochs))
    if epoch > optim.warmup_epochs:
        return rate
    risen = (epoch - 1) / optim.warmup_epochs
    return rate * risen + optim.warmup_lr * (1 - risen)
