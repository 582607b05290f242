"""Learning rate schedules, as pure functions of the settings and the step."""

from math import cos, pi

from ppll_cli.config.sections import Optim


def learning_rate(optim: Optim, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of the optimizer step that follows `step` earlier steps.

    The learning rate's schedule extends over all epochs, even if the run stops earlier.
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
    """Return a note if there are too few epochs for the warm-up or the milestones; else None."""
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
    """Return the rate of an epoch (1 or more) as InfoPro's code computes it (arXiv 2101.10832).

    The cosine extends over all epochs, including the warm-up, and reaches 0 in the last one. During
    the warm-up the rate changes linearly from `warmup_lr` to the value of the cosine.
    """
    rate = optim.lr * 0.5 * (1 + cos(pi * epoch / epochs))
    if epoch > optim.warmup_epochs:
        return rate
    risen = (epoch - 1) / optim.warmup_epochs
    return rate * risen + optim.warmup_lr * (1 - risen)
