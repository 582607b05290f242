"""Learning rates compared with values by hand, and properties of all schedules."""

from dataclasses import replace
from itertools import pairwise
from math import cos, pi
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.config.sections import Optim
from ppll_cli.errors import ConfigError
from ppll_cli.job.course import Course
from ppll_cli.job.learning_rate import learning_rate, note_on_epochs

PLAIN: dict[str, Any] = {
    "name": "sgd",
    "lr": 0.8,
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "schedule": "constant",
    "warmup_epochs": 0,
    "milestones": [],
    "gamma": 0.1,
    "clip_norm": None,
}


def optim(**changes: object) -> Optim:
    return Optim(**(PLAIN | changes))


def rates(settings: Optim, steps_per_epoch: int, epochs: int) -> list[float]:
    steps = range(steps_per_epoch * epochs)
    return [learning_rate(settings, step, steps_per_epoch, epochs) for step in steps]


def test_the_constant_schedule_has_a_single_rate() -> None:
    assert rates(optim(), 3, 2) == [0.8] * 6


def test_the_step_schedule_falls_at_each_milestone() -> None:
    settings = optim(schedule="step", milestones=[1, 2.5])
    assert rates(settings, 2, 4) == pytest.approx([0.8] * 2 + [0.08] * 3 + [0.008] * 3)


def test_milestones_may_have_any_order_and_factor() -> None:
    settings = optim(schedule="step", milestones=[2, 1, 1], gamma=0.5)
    assert rates(settings, 1, 3) == pytest.approx([0.8, 0.2, 0.1])


def test_cosine_is_zero_one_step_after_the_last_step() -> None:
    settings = optim(schedule="cosine")
    assert rates(settings, 2, 2) == pytest.approx(
        [0.8, 0.4 * (1 + cos(pi / 4)), 0.4, 0.4 * (1 - cos(pi / 4))]
    )
    assert learning_rate(settings, 4, 2, 2) == pytest.approx(0.0)


def test_warmup_rises_in_equal_steps_to_the_full_rate() -> None:
    rising = [0.2, 0.4, 0.6]
    assert rates(optim(warmup_epochs=1), 3, 2) == pytest.approx([*rising, 0.8, 0.8, 0.8])
    cosine = optim(warmup_epochs=1, schedule="cosine")
    falling = [0.4 * (1 + cos(pi * done / 3)) for done in range(3)]
    assert rates(cosine, 3, 2) == pytest.approx([*rising, *falling])


def test_a_warmup_may_be_a_part_of_an_epoch() -> None:
    assert rates(optim(warmup_epochs=0.5), 6, 1) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_milestones_count_from_the_start_and_not_after_the_warmup() -> None:
    settings = optim(schedule="step", milestones=[2], warmup_epochs=1)
    assert rates(settings, 1, 4) == pytest.approx([0.4, 0.8, 0.08, 0.08])


def test_max_steps_does_not_change_the_rates() -> None:
    course = Course({"train": 8}, 2, False, 2, epochs=5, max_steps=None, eval_every=1,
                    checkpoint_every=None)  # fmt: skip
    short = replace(course, max_steps=3)
    settings = optim(schedule="cosine", warmup_epochs=1)
    found = [rates(settings, c.steps_per_epoch, c.epochs)[:3] for c in (course, short)]
    assert found[0] == found[1]


INFOPRO = {"schedule": "cosine_by_epoch", "warmup_epochs": 10}


def published(epoch: int) -> float:
    """Return the learning rate of an epoch from 1 to 160, by the formula of InfoPro's code."""
    cosine = 0.8 / 2 * (1 + cos(pi * epoch / 160))
    if epoch <= 10:
        return cosine * (epoch - 1) / 10 + 0.01 * (11 - epoch) / 10
    return cosine


def test_cosine_by_epoch_equals_infopros_code() -> None:
    found = rates(optim(**INFOPRO), 3, 160)
    expected = [published(step // 3 + 1) for step in range(3 * 160)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert found[:3] == [0.01] * 3  # the first epoch
    assert found[3 * 10] == pytest.approx(0.8 * cos(11 * pi / 320) ** 2)  # first after the warm-up
    assert found[-3:] == [0.0] * 3  # the last epoch


def test_cosine_after_the_warmup_adds_eight_per_cent_to_the_rates() -> None:
    """The sum over all epochs is larger. Presets named after InfoPro once used this schedule."""
    by_epoch = sum(rates(optim(**INFOPRO), 49, 160)) / 49
    behind = sum(rates(optim(**INFOPRO | {"schedule": "cosine"}), 49, 160)) / 49
    assert by_epoch == pytest.approx(sum(published(epoch) for epoch in range(1, 161)))
    assert by_epoch == pytest.approx(59.264, abs=1e-3)
    assert behind / by_epoch == pytest.approx(1.080, abs=1e-3)


def test_cosine_by_epoch_works_without_a_warmup() -> None:
    found = rates(optim(schedule="cosine_by_epoch"), 2, 3)
    assert found == pytest.approx([0.6, 0.6, 0.2, 0.2, 0, 0])


def test_a_warmup_that_starts_above_the_learning_rate_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        optim(**INFOPRO, lr=0.001)
    problem = "a warm-up cannot begin above optim.lr=0.001; give a smaller rate"
    assert str(caught.value) == f"optim.warmup_lr=0.01: {problem}"
    optim(**INFOPRO | {"warmup_epochs": 0}, lr=0.001)


@given(
    st.builds(
        optim,
        lr=st.floats(1e-6, 10.0),
        schedule=st.sampled_from(["constant", "step", "cosine"]),
        warmup_epochs=st.floats(0, 3),
        milestones=st.lists(st.floats(0, 8), max_size=3),
        gamma=st.floats(0.01, 1.0),
    ),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_rates_rise_during_the_warmup_and_never_after_it(
    settings: Optim, steps_per_epoch: int, epochs: int
) -> None:
    found = rates(settings, steps_per_epoch, epochs)
    assert all(0 < rate <= settings.lr for rate in found)
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    assert all(a < b for a, b in pairwise(found[:warmup]))
    assert all(a >= b for a, b in pairwise(found[warmup:]))
    if settings.schedule != "step" and warmup < len(found):
        assert found[warmup] == settings.lr


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"schedule": "cosine", "warmup_epochs": 2}, "optim.warmup_epochs=2: with epochs=2 the"),
        ({"warmup_epochs": 2.5}, "optim.warmup_epochs=2.5: with epochs=2 the"),
        ({"schedule": "step", "milestones": [2, 4]}, "optim.milestones=[2, 4]: with epochs=2 the"),
        ({"schedule": "step", "milestones": [4, 1.5]}, None),
        ({"schedule": "cosine", "warmup_epochs": 1.5}, None),
        ({"schedule": "cosine", "warmup_epochs": 0}, None),
        ({"schedule": "cosine_by_epoch", "warmup_epochs": 2}, None),
        ({}, None),
    ],
)
def test_a_note_says_that_the_rate_never_falls(changes: dict[str, Any], note: str | None) -> None:
    """A user who shortens a run may forget the warm-up and the milestones of the default."""
    settings = optim(**changes)
    found = note_on_epochs(settings, 2)
    assert (found is None) == (note is None)
    assert (found or "").startswith(note or "")
    assert found is None or "; give " in found
    used = rates(settings, 4, 2)
    if settings.schedule != "constant":
        assert (found is None) == any(a > b for a, b in pairwise(used))
