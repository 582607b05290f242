"""The benchmark that kills single stages: its plans, and its summary."""

from collections import Counter
from signal import SIGKILL

from scripts.benchmarks import restarts
from scripts.benchmarks.restarts import MOMENTS, Outcome, plans, summary
from scripts.benchmarks.soak import CASES


def test_plans_have_all_moments_equally_often() -> None:
    found = plans(5 * len(MOMENTS), seed=3)
    assert set(Counter(plan.moment for plan in found).values()) == {5}
    assert found == plans(5 * len(MOMENTS), seed=3)
    assert found != plans(5 * len(MOMENTS), seed=4)


def test_plans_hit_existing_stages() -> None:
    for plan in plans(100, seed=0):
        workers = int(plan.case.split()[-1])
        assert plan.case in restarts.NAMES
        assert plan.case in CASES
        assert len({*plan.stages}) == len(plan.stages) == (2 if plan.moment == "together" else 1)
        assert {*plan.stages} <= {*range(workers)}
        if plan.moment == "start-up":
            assert plan.number == SIGKILL


def test_the_summary_counts_faults_and_restarts() -> None:
    good, bad = (Outcome(plan) for plan in plans(2, seed=0))
    good.hits, good.restarts = 2, [0.2, None, 0.4]
    bad.hits, bad.notes = 1, ["its weights differ"]
    found = summary([good, bad])
    totals = {key: found[key] for key in ("runs", "faults", "restarts", "longest_s", "failed")}
    assert totals == {"runs": 2, "faults": 3, "restarts": 3, "longest_s": 0.4, "failed": 1}
    assert [row["notes"] for row in found["rows"]] == [[], ["its weights differ"]]
    assert found["rows"][0]["number"] == good.plan.number.name
