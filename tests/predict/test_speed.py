"""Predictions compared with formulas. All costs differ where the formula allows it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ppll_cli.job.job import Job, WatchedUnit
from ppll_cli.leaves.values import ValueSpec
from ppll_cli.pipeline.instructions import Forward
from ppll_cli.pipeline.routes import Watch
from ppll_cli.predict import speed as predicting
from ppll_cli.predict.costs import instruction_times
from ppll_cli.predict.interconnect import Carriers, Interconnect, Link
from ppll_cli.predict.profile import Measured
from ppll_cli.predict.speed import bp_batch_s, predict
from tests.conftest import with_settings
from tests.predict.given import TOKENS, UNITS, Source, batch_s, job

pytestmark = pytest.mark.usefixtures("one_core")

DIFFERENT = Source(
    forward_s=(1.0, 2.5, 0.5, 3.0, 1.5, 0.25),
    backward_s=(2.0, 3.5, 1.25, 5.0, 2.75, 0.5),
    loss=Measured(0.125, 0.375, 40, 7),
    copy_s=0.0625,
    step_s=0.01,
)


def test_ppll_has_the_speed_of_its_slowest_stage() -> None:
    """The stages have the units 0-1, 2-3 and 4-5.

    Each stage takes forward, backward, loss and step. All but the last one also copy.
    """
    found = predict(job("ppll", 3), DIFFERENT)
    totals = []
    for first in (0, 2, 4):
        units = sum(DIFFERENT.forward_s[first : first + 2]) + sum(
            DIFFERENT.backward_s[first : first + 2]
        )
        params = 10 * (first + 1) + 10 * (first + 2) + 7
        totals.append(units + 0.5 + 0.01 * params + 0.0625 * (first < 4))
    assert found.stage_s == pytest.approx(totals)
    assert batch_s(found) == pytest.approx(max(totals))
    assert found.bubble_fraction == pytest.approx(1 - sum(totals) / (3 * max(totals)))


def test_modules_compute_no_gradients_of_their_inputs() -> None:
    """The backward of a module's first unit is cheaper.

    This counts for each module under ll, but never under bp.
    """
    source = Source(spared_s=0.25)
    for schedule, spared in (("bp", 0), ("pp", 0), ("ll", 3)):
        found = predict(job(schedule, 3), source)
        assert batch_s(found) == pytest.approx(3.0 * UNITS - 0.25 * spared)
    assert predict(job("ppll", 3), source).stage_s == pytest.approx([6.0 - 0.25] * 3)


@pytest.mark.parametrize("schedule", ["bp", "pp", "ll"])
def test_times_add_up_if_one_stage_computes_at_a_time(schedule: str) -> None:
    """Only one stage computes at a time, so times add up.

    Under pp, the steps of later stages overlap with the next batch.
    """
    found = predict(job(schedule, 3), DIFFERENT)
    units = sum(DIFFERENT.forward_s) + sum(DIFFERENT.backward_s)
    steps = 0.01 * 10 * (1 + 2 + 3 + 4 + 5 + 6)
    if schedule == "pp":
        # There are two copies in each direction. Only the first stage's step delays the next batch.
        assert batch_s(found) == pytest.approx(units + 0.5 + 4 * 0.0625 + 0.01 * 10 * 3)
    elif schedule == "bp":
        assert batch_s(found) == pytest.approx(units + 0.5 + steps + 0.07)
        assert bp_batch_s(UNITS, DIFFERENT) == pytest.approx(units + 0.5 + steps)
    else:
        assert batch_s(found) == pytest.approx(units + 3 * (0.5 + 0.07) + steps)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
@pytest.mark.parametrize("gpus", [2, 3, 6])
def test_gpipe_and_1f1b_have_the_bubble_of_the_formula(
    schedule: str, microbatches: int, gpus: int
) -> None:
    """With equal stages, a batch takes M + K - 1 times a micro-batch.

    The bubble is (K - 1) / (M + K - 1).
    """
    source = Source()
    found = predict(job(schedule, gpus, microbatches), source)
    stage = 3.0 * UNITS / gpus / microbatches
    assert batch_s(found) == pytest.approx((microbatches + gpus - 1) * stage)
    assert found.bubble_fraction == pytest.approx((gpus - 1) / (microbatches + gpus - 1))
    assert {samples for samples, _ in source.asked} == {8 // microbatches}


def test_smaller_micro_batches_take_less_time() -> None:
    """A batch of 8 samples in 3 parts has 3, 3 and 2."""
    made = job("gpipe", 2, 3)
    carriers = Carriers(made, Interconnect())
    first = instruction_times(made, 0, Source().at(3), [3, 3, 2], carriers)
    assert [first[Forward(0, m)] for m in range(3)] == pytest.approx([9 / 8, 9 / 8, 6 / 8])


def test_stages_that_compute_at_the_same_time_are_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under pp no stages compute at the same time, and under ppll all do.

    Under gpipe they do outside of the bubble.
    """
    monkeypatch.setattr(predicting, "usable_cores", lambda: 2)
    source = Source(slower=1.5)
    assert batch_s(predict(job("pp", 2), source)) == pytest.approx(18.0)
    assert batch_s(predict(job("bp", 2), source)) == pytest.approx(18.0)
    assert batch_s(predict(job("ppll", 2), source)) == pytest.approx(1.5 * 9.0)
    # M = 2. Per micro-batch, a forward takes 1.5 s and a backward 3 s. Four passes have no other
    # pass beside them: the first forward and the last backward of stage 0, and the last forward and
    # the first backward of stage 1.
    found = batch_s(predict(job("gpipe", 2, 2), source))
    assert found == pytest.approx(1.5 + 1.5 * 1.5 + 1.5 + 3.0 + 1.5 * 3.0 + 3.0, rel=0.02)
    assert (8, 1) in source.asked
    # There are three stages and two cores, so a stage has at most one neighbour.
    assert batch_s(predict(job("ppll", 3), source)) == pytest.approx(1.5 * 6.0)


def test_only_stages_on_the_same_machine_slow_each_other_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If `neighbours` is given, it counts instead."""
    monkeypatch.setattr(predicting, "usable_cores", lambda: 4)
    source = Source(slower=1.5)
    for per_machine, slower in ((3, 1.5), (1, 1.0)):
        made = job("ppll", 3, per_machine=per_machine)
        assert batch_s(predict(made, source)) == pytest.approx(slower * 6.0)
        assert batch_s(predict(made, source, neighbours=1)) == pytest.approx(1.5 * 6.0)
    # There are two machines. The one with two stages sets the pace.
    assert batch_s(predict(job("ppll", 3, per_machine=2), source)) == pytest.approx(1.5 * 6.0)
    paced = Source(slower=1.5, forward_s=(1.0,) * 4 + (4.0,) * 2)
    assert batch_s(predict(job("ppll", 3, per_machine=2), paced)) == pytest.approx(12.0)


def test_memory_includes_saved_tensors_and_parameters() -> None:
    """Units save 100, 200, ... bytes per sample, and have 10, 20, ... parameters.

    Each loss has 3 trained parameters, and 20 bytes of parameters that are not trained.
    """
    saved = [100 * (index + 1) for index in range(UNITS)]
    image, token = 3 * 8 * 8 * 4 + 8, TOKENS + 8
    source = Source(loss=Measured(0.0, 0.0, 8 * 5, 3, frozen_bytes=20))
    pp, gpipe, one, ll, ppll = (
        predict(job(name, 2, modules=3), source) for name in ("pp", "gpipe", "1f1b", "ll", "ppll")
    )
    assert pp.activation_bytes == [8 * (600 + image), 8 * (1500 + token) + 40]
    # There are four micro-batches of two samples. Only one loss has its graph in memory at a time.
    assert gpipe.activation_bytes == [8 * (600 + image), 4 * 2 * 1500 + 40 + 8 * token]
    assert one.activation_bytes == [2 * 2 * 600 + 8 * image, 2 * 1500 + 40 + 2 * token]
    modules = [sum(saved[start : start + 2]) for start in (0, 2, 4)]
    assert ll.activation_bytes == [8 * (max(modules) + image) + 40]
    assert ppll.activation_bytes == [
        8 * (max(modules[:2]) + image) + 40,
        8 * (modules[2] + token) + 40,
    ]
    assert ppll.parameter_bytes == [16 * (10 + 20 + 30 + 40 + 6) + 40, 16 * (50 + 60 + 3) + 20]
    assert pp.parameter_bytes == [16 * 60, 16 * (150 + 3) + 20]


def test_weights_that_are_not_trained_have_neither_gradients_nor_states() -> None:
    """They are in memory once. Averages of weights include them."""
    trained, frozen = 10 + 20 + 30, 3 * 400
    plain = job("pp", 2)
    assert predict(plain, Source(frozen=400)).parameter_bytes[0] == 16 * trained + frozen
    averaged = with_settings(plain, optim=plain.settings.optim.model_copy(update={"ema": 0.9}))
    found = predict(averaged, Source(frozen=400)).parameter_bytes[0]
    assert found == (16 + 4) * trained + 2 * frozen


def test_memory_is_lower_if_units_recompute() -> None:
    """Each unit keeps some bytes.

    The backward of a single unit computes 1000, 2000, ... bytes per sample again.
    """
    image, token = 3 * 8 * 8 * 4 + 8, TOKENS + 8
    source = Source(loss=Measured(0.0, 0.0, 8 * 5000, 0), recomputed=1000)
    bp, gpipe, ll = (predict(job(name, 2, modules=3), source) for name in ("bp", "gpipe", "ll"))
    assert bp.activation_bytes == [8 * (2100 + 6000 + image)]
    assert gpipe.activation_bytes == [
        8 * (600 + image) + 2 * 3000,
        8 * (1500 + token) + 8 * 5000,  # a loss needs more than a unit
    ]
    assert ll.activation_bytes == [8 * (1100 + 6000 + image)]


def watching(lag: int, replicas: int = 1, **options: Any) -> Job:
    """Return a job with three modules on three stages.

    Losses watch weights of 400 and 1000 bytes.
    """
    made = job("ppll", 3 * replicas, replicas=replicas, **options)
    watches = {0: Watch(2, lag), 1: Watch(4, lag)}
    watched = {
        unit: WatchedUnit(str(unit), {"weight": ValueSpec((size,), torch.float32)})
        for unit, size in ((2, 100), (4, 250))
    }
    return replace(made, routes=replace(made.routes, watches=watches), watched=watched)


def test_with_lag_1_a_stage_waits_for_the_step_of_the_next_stage() -> None:
    """The forward of a stage takes 2 s. It is no longer hidden behind the 6 s of the next stage."""
    paces = [batch_s(predict(watching(lag), Source())) for lag in (1, 2, 9)]
    assert paces == [pytest.approx(pace) for pace in (8.0, 6.0, 6.0)]


def test_watched_weights_cost_copies_and_memory() -> None:
    """Watched weights cost a copy and older versions at the sender, and slots at the receiver."""
    without, found = (predict(made, Source(copy_s=0.5)) for made in (job("ppll", 3), watching(4)))
    assert found.stage_s == pytest.approx(
        [t + e for t, e in zip(without.stage_s, (0, 0.5, 0.5), strict=True)]
    )
    slots = 2 + watching(4).depth
    assert [a - b for a, b in zip(found.parameter_bytes, without.parameter_bytes, strict=True)] == [
        slots * 512,
        slots * 1024 + 3 * 400,
        3 * 1000,
    ]


def test_watched_weights_are_sent_once_per_batch_in_each_replica() -> None:
    links = Interconnect(Link(1e12), Link(1e12), bf16=True)
    one, two = (watching(2, replicas, per_machine=3) for replicas in (1, 2))
    here = [edge.bytes_per_batch for edge in predict(job("ppll", 3), Source()).edges]
    for made, replicas in ((one, 1), (two, 2)):
        edges = predict(made, Source()).edges
        assert [e.bytes_per_batch - b for e, b in zip(edges, here, strict=True)] == [
            400 * replicas,
            1000 * replicas,
        ]
    crossing = predict(replace(one, homes=(0, 1, 1)), Source(), links).edges
    assert crossing[0].bytes_per_batch == here[0] // 2 + 400
