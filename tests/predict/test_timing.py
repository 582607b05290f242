"""How times and saved tensors are measured."""

import pytest
import torch
from torch import nn

from ppll_cli.job.numerics import Numerics
from ppll_cli.local.method import Criterion
from ppll_cli.predict import timing
from ppll_cli.tasks.classification import Classification


def test_times_are_medians_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow warm-up does not count. A single disturbed run hardly changes the median."""
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    rows = iter([[9.0, 90.0]] * timing.WARMUP + [[3.0, 20.0], [1.0, 80.0], [2.0, 10.0]])
    assert timing.repeat(lambda: next(rows), torch.device("cpu")) == [2.0, 20.0]


@pytest.mark.parametrize("threads", [1, 2])
def test_times_by_the_clock_show_whether_other_programs_use_the_core(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """On a busy machine, a step of two threads took a thousand times too long, and was trusted.

    With one thread, the thread's own time is measured.
    """
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    monkeypatch.setattr(timing, "DISTURBED", [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    steps: list[float] = []

    def step() -> list[float]:  # takes a second
        steps.append(1.0)
        return [1.0]

    monkeypatch.setattr(timing, "perf_counter", lambda: float(len(steps)))
    for share in (0.9, 0.1):
        monkeypatch.setattr(timing, "thread_time", lambda share=share: share * len(steps))
        timing.repeat(step, torch.device("cpu"))
        assert bool(timing.DISTURBED) == (threads == 2 and share < 0.5)


def test_each_tensor_that_autograd_saves_is_counted_once() -> None:
    """Linear saves its input and its weight, which are not counted. Each ReLU saves its output."""
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.ReLU())
    x = torch.rand(2, 6)
    with timing.saved_storages([x, *timing.held(network)]) as saved:
        network(x)
    assert sorted(saved.values()) == [2 * 4 * 4] * 2


def test_parameters_that_are_not_trained_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have neither gradients nor states of the optimizer; the average of `man` is one."""
    monkeypatch.setattr(timing, "repeat", lambda step, device: (1.0, 2.0))
    frozen = nn.Linear(6, 4).requires_grad_(False)
    task = Classification(3)
    criterion = Criterion(nn.Sequential(frozen, nn.Linear(4, 3)), ("x",), task)
    values = {"x": torch.rand(2, 6), "label": torch.tensor([0, 2])}
    found = timing.time_criterion(criterion, values, task, Numerics("fp32", False))
    assert found["params"] == 4 * 3 + 3
    assert found["frozen_bytes"] == 4 * (6 * 4 + 4)
