"""Predictions for links between devices and between machines."""

from typing import Any

import pytest

from ppll_cli.predict import costs
from ppll_cli.predict.interconnect import Interconnect, Link
from ppll_cli.predict.speed import predict
from ppll_cli.transport.averages import BUCKET_BYTES
from tests.conftest import with_settings
from tests.predict.given import TOKENS, UNITS, Source, batch_s, job

pytestmark = pytest.mark.usefixtures("one_core")

DOWN, UP = 8 * (TOKENS + 8), 8 * TOKENS
"""Bytes of a batch that cross a cut: activations with labels, and gradients."""


def test_links_send_while_stages_compute_only_under_ppll() -> None:
    """Under ppll, the link carries a message while stages compute. Under pp, they wait for it."""
    fast, slow = (Link(DOWN / seconds, latency_s=2.0) for seconds in (4.0, 100.0))
    for link, pace_s in ((fast, 9.0), (slow, 100.0)):
        assert batch_s(predict(job("ppll", 2), Source(), Interconnect(link))) == approx(pace_s)
        way_s = DOWN / link.bytes_per_second + UP / link.bytes_per_second + 2 * 2.0
        assert batch_s(predict(job("pp", 2), Source(), Interconnect(link))) == approx(18.0 + way_s)


def test_latency_costs_time_if_a_channel_has_few_slots() -> None:
    """The channel has two slots, so two batches pass in a little more than 100 s."""
    made = with_settings(job("ppll", 2), transport={"depth": 1})
    found = batch_s(predict(made, Source(), Interconnect(Link(1e12, latency_s=100.0))))
    assert 50.0 < found < 50.0 + 9.0


def approx(seconds: float) -> Any:
    return pytest.approx(seconds)


def test_the_bytes_between_stages_are_predicted() -> None:
    found = predict(job("ppll", 3, per_machine=2), Source(), Interconnect(Link(10.0), Link(5.0)))
    assert [edge.bytes_per_batch for edge in found.edges] == [DOWN, DOWN]
    assert [edge.between_machines for edge in found.edges] == [False, True]
    assert batch_s(found) == approx(DOWN / 5.0)
    assert [edge.busy_fraction for edge in found.edges] == [approx(0.5), approx(1.0)]
    (edge,) = predict(job("pp", 2), Source()).edges
    assert (edge.bytes_per_batch, edge.busy_fraction) == (DOWN + UP, None)
    (edge,) = predict(
        job("pp", 2, per_machine=1), Source(), Interconnect(between=Link(1e12), bf16=True)
    ).edges
    assert edge.bytes_per_batch == DOWN // 2 + UP // 2


def test_copies_for_a_network_take_time_of_the_sender() -> None:
    source, link = Source(copy_s=0.5), Link(1e12)
    within = predict(job("ppll", 2), source, Interconnect(link, link))
    between = predict(job("ppll", 2, per_machine=1), source, Interconnect(link, link))
    assert [within.stage_s[0], between.stage_s[0]] == [approx(9.0), approx(9.5)]


def test_messages_that_leave_a_machine_share_its_link() -> None:
    """Two replicas of a stage are on one machine. Each sends half as much as a single worker."""
    link = Interconnect(between=Link(1.0))
    alone = predict(job("ppll", 2, per_machine=1), Source(), link)
    both = predict(job("ppll", 4, replicas=2, per_machine=2), Source(), link)
    assert batch_s(both) == approx(batch_s(alone))
    assert both.edges[0].bytes_per_batch == alone.edges[0].bytes_per_batch
    apart = predict(job("ppll", 4, replicas=2, per_machine=1), Source(), link)
    assert batch_s(apart) == approx(batch_s(alone) / 2)


def test_an_average_of_one_bucket_comes_after_the_backward() -> None:
    """All gradients are in one bucket.

    It is complete when the backward ends, and is then averaged.
    """
    params = sum(10 * (index + 1) for index in range(UNITS))
    assert 4 * params < BUCKET_BYTES

    def pace_s(per_machine: int, interconnect: Interconnect) -> float:
        made = job("bp", 2, replicas=2, per_machine=per_machine)
        return batch_s(predict(made, Source(copy_s=0.25), interconnect))

    half_s = 18.0 / 2  # the time of half a batch
    assert pace_s(2, Interconnect()) == approx(half_s + 0.25)
    link = Link(4 * params / 3.0, latency_s=0.5)
    assert pace_s(2, Interconnect(link)) == approx(half_s + 3.0 + 2 * 0.5)
    assert pace_s(1, Interconnect(Link(1e12), link)) == approx(half_s + 3.0 + 2 * 0.5)
    found = predict(job("bp", 2, replicas=2), Source())
    assert found.averaged_bytes == 4 * params
    assert predict(job("bp", 1), Source()).averaged_bytes == 0


def test_most_averages_of_many_buckets_hide_behind_the_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are 100 buckets, which take 3 s.

    The first ones are complete early in the backward of 6 s. Only the last bucket is sent after the
    backward.
    """
    params = sum(10 * (index + 1) for index in range(UNITS))
    monkeypatch.setattr(costs, "BUCKET_BYTES", 4 * params / 100)
    link = Interconnect(Link(4 * params / 3.0))
    assert batch_s(predict(job("bp", 2, replicas=2), Source(), link)) == approx(9.0 + 0.03)
    # The last unit's backward takes 1 s. This unit has 60 of 210 parameters, and a bucket has 2.1.
    slow = Interconnect(Link(4 * params / 60.0))
    assert batch_s(predict(job("bp", 2, replicas=2), Source(), slow)) == approx(63.0 + 2.1 / 60)


def test_a_bucket_is_complete_when_the_backward_has_its_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are two buckets of 100 parameters and one of 10.

    Units have 10, 20, ... parameters, and their backwards take equally long.
    """
    monkeypatch.setattr(costs, "BUCKET_BYTES", 4 * 100)
    made = job("bp", 2, replicas=2)
    (chunk,) = made.layout.chunks
    shares = costs._completed_after(made, chunk, Source())
    assert shares == [approx((1 + 40 / 50) / 6), approx((4 + 20 / 20) / 6), 1.0]
    link = Interconnect(Link(4 * 210 / 6.0))  # each bucket takes 2 s, the backward 6 s
    assert batch_s(predict(made, Source(), link)) == approx(9.0 - 6.0 + 5.0 + 2.0 + 2.0)
