"""Reports are sent when the device has copied their values.

No host waits for this before a mark.
"""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.errors import NonFiniteError
from ppll_cli.local.method import Criterion
from ppll_cli.pipeline.instructions import Forward
from ppll_cli.pipeline.layout import Chunk
from ppll_cli.tasks.classification import Classification
from ppll_cli.transport.replicas import Replicas
from ppll_cli.worker.clock import StreamClock
from ppll_cli.worker.nonfinite import NonFinite
from ppll_cli.worker.recorder import Recorder
from ppll_cli.worker.reports import Reports
from ppll_cli.worker.sums import JOINED, Sums

TASK = Classification(2)


class Device:
    """A fake `torch.cuda`: a queue of work. Each item takes 1 s, and the test says what is done."""

    def __init__(self) -> None:
        self.queued = self.done = 0
        self.made = self.waits = 0

    def Event(self, enable_timing: bool) -> "Event":  # noqa: N802 - as torch names it
        assert enable_timing
        self.made += 1
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self._device = device
        self.at: int | None = None

    def record(self) -> None:
        self.at = self._device.queued

    def query(self) -> bool:
        assert self.at is not None
        return self.at <= self._device.done

    def synchronize(self) -> None:
        assert self.at is not None
        self._device.waits += 1
        self._device.done = max(self._device.done, self.at)

    def elapsed_time(self, other: "Event") -> float:
        assert self.query(), "torch raises an error here"
        assert other.query(), "torch raises an error here"
        assert self.at is not None
        assert other.at is not None
        return 1000.0 * (other.at - self.at)


class OneModule:
    """The parts of a chunk that reports use."""

    def __init__(self) -> None:
        self.place = Chunk(range(1), 0, 0, True)
        self.criterion = Criterion(nn.Identity(), ("x",), TASK)
        self.sums: dict[str, Sums] = {}
        self.nonfinite = NonFinite(True, self.place, torch.device("cpu"))
        self.squared_norm: Tensor | None = None
        self.device = torch.device("cpu")


class Case:
    """A stage with one module on the fake device."""

    def __init__(self, replicas: Replicas | None = None) -> None:
        self.device = Device()
        self.sent: list[dict[str, Any]] = []
        self.chunk = OneModule()
        measured = StreamClock(self.device), TASK, [cast(Any, self.chunk)], replicas
        self.reports = Reports(*measured, True, lambda _, **f: self.sent.append(f), lambda: None)

    def train(self, step: int, loss: float = 0.5) -> None:
        self.step(loss)
        self.report(step)

    def step(self, loss: float = 0.5) -> None:
        self.reports.begin("train")
        self.device.queued += 1
        measures = torch.ones(1, 2, dtype=torch.float64)
        self.chunk.sums.setdefault("train", Sums()).add(torch.tensor(loss), 4, measures)

    def report(self, step: int, **how: Any) -> None:
        self.reports.take("train", step, 1, **how)
        self.reports.send()

    def saved(self) -> dict[int, dict[str, Any]]:
        """Return the data that a checkpoint has, after writing and reading them."""
        self.reports.pause("train")
        self.reports.send(wait=True)
        found = self.reports.unreported()
        return {int(module): each for module, each in json.loads(json.dumps(found)).items()}

    @property
    def steps(self) -> list[int]:
        return [fields["step"] for fields in self.sent]


def test_reports_are_sent_in_order_once_the_device_has_reached_them() -> None:
    case = Case()
    for step in (1, 2, 3):
        case.train(step)
    assert case.steps == []
    case.device.done = 2
    case.reports.send()
    assert case.steps == [1, 2]
    assert case.device.waits == 0
    case.reports.send(wait=True)
    assert case.steps == [1, 2, 3]
    assert case.device.waits == 1
    assert [fields["seconds"] for fields in case.sent] == [1.0, 1.0, 1.0]
    assert [fields["loss"] for fields in case.sent] == [2.0, 2.0, 2.0]


class Twins(Replicas):
    """Two replicas with equal measurements."""

    def __init__(self) -> None: ...

    def add(self, tensor: Tensor) -> Any:
        return SimpleNamespace(wait=lambda: tensor.mul_(2))

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows])


@pytest.mark.parametrize(("replicas", "samples"), [(None, 4), (Twins(), 8)])
def test_an_evaluation_reports_the_metric_of_further_predictions(
    replicas: Replicas | None, samples: int
) -> None:
    case = Case(replicas)
    case.chunk.criterion.further = ("probe",)
    rows = {split: torch.tensor([[n, 4.0]]).double() for n, split in ((3, "test"), (1, "train"))}
    rows["test.probe"] = torch.tensor([[2.0, 4.0]]).double()
    for split, measures in rows.items():
        case.chunk.sums.setdefault(split, Sums()).add(torch.tensor(0.5), 4, measures)
    case.reports.take("train", 1, 1, rate=0.1)
    case.reports.take("test", 1, 1)
    case.reports.take("test", 2, 1)  # no evaluation batch is left for this replica
    case.reports.send(wait=True)
    training, evaluation = case.sent
    assert training["scores"] == {"accuracy": 0.25}
    assert evaluation["scores"] == {"accuracy": 0.75, "accuracy_probe": 0.5}
    assert training["samples"] == evaluation["samples"] == samples
    assert evaluation["loss"] == 0.5 * samples


def test_events_are_reused() -> None:
    case = Case()
    for step in range(20):
        case.train(step)
        case.device.done = case.device.queued - 1
    assert case.device.made <= 6


def test_a_nonfinite_loss_is_an_error_at_the_next_mark() -> None:
    """A checkpoint waits for all reports. No report after the non-finite loss is sent."""
    case = Case()
    case.train(1)
    case.train(2, loss=float("nan"))
    case.train(3)
    with pytest.raises(NonFiniteError, match="module 0 of a recent step"):
        case.reports.send(wait=True)
    assert case.steps == [1]


def test_skipped_steps_are_logged_with_the_report(caplog: pytest.LogCaptureFixture) -> None:
    case = Case()
    case.chunk.nonfinite.skipped = {5: torch.tensor(0.0), 6: torch.tensor(1.0)}
    case.train(7)
    assert not caplog.records
    case.reports.send(wait=True)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message == "step 6 of module 0 is skipped: its gradient norm is not finite"
    case.train(8)
    case.reports.send(wait=True)
    assert len(caplog.records) == 1


def test_learning_rate_and_norm_are_copied_with_the_report() -> None:
    """The norm is on the device too, and no host waits for it."""
    case = Case()
    for step, norm in ((1, 2.0), (2, 3.0)):
        case.chunk.squared_norm = torch.tensor(norm, dtype=torch.float64).square()
        case.step()
        case.report(step, rate=0.1 * step)
    assert case.device.waits == 0
    assert case.sent == []
    case.reports.send(wait=True)
    assert [fields["last_step"] for fields in case.sent] == [
        {"lr": 0.1, "grad_norm": 2.0},
        {"lr": 0.2, "grad_norm": 3.0},
    ]


def test_time_after_a_pause_is_not_counted() -> None:
    case = Case()
    case.step()
    case.reports.pause("train")
    case.device.queued += 100  # for example, a checkpoint is written
    case.step()
    case.report(2)
    case.reports.send(wait=True)
    assert [fields["seconds"] for fields in case.sent] == [2.0]


def test_an_incomplete_report_is_part_of_the_next_one() -> None:
    """Another process sends the next report. It adds the sums and seconds of the checkpoint."""
    case, again = Case(), Case()
    for loss in (1.0, 2.0):
        case.step(loss)
    case.report(2, complete=False)
    saved = case.saved()
    again.reports.continue_sums(saved)
    again.step(3.0)
    again.report(3)
    again.reports.send(wait=True)
    (before,), (after,) = case.sent, again.sent
    assert (before["complete"], before["loss"], before["samples"]) == (False, 12.0, 8)
    assert (after["complete"], after["loss"], after["samples"]) == (True, 24.0, 12)
    assert (before["seconds"], after["seconds"]) == (2.0, 3.0)
    assert again.saved() == {}


def test_an_unreported_nonfinite_loss_is_an_error_at_a_checkpoint() -> None:
    case = Case()
    case.step(float("nan"))
    with pytest.raises(NonFiniteError, match="module 0 of a recent step"):
        case.saved()


def test_measures_are_joined_while_they_are_collected() -> None:
    """An epoch can have many of them."""
    sums = Sums()
    for number in range(1000):
        sums.add(torch.tensor(1.0), 1, torch.full((1, 2), number, dtype=torch.float64))
    assert len(sums.measures) < JOINED
    assert sums.rows[:, 0].tolist() == [*range(1000)]


def test_the_steady_state_never_waits_for_the_device() -> None:
    """The times are those of the device, but they are read later."""
    device = Device()
    recorder = Recorder(StreamClock(cast(Any, device)), 0, 0, lambda: None, traced=2)
    for step in range(50):
        recorder.begin_batch(step)
        with recorder.span("compute", Forward(0, 0)):
            device.queued += 3
        device.queued += 1
        recorder.end_batch(8)
        device.done = device.queued - 10  # the host is some batches ahead
    recorder.end_segment()
    assert device.waits == 0
    assert device.made < 20
    assert recorder.totals.spent_s["compute"] < 150.0
    assert recorder.counted_s < 200.0
    recorder.settle()
    assert recorder.totals.spent_s["compute"] == 150.0
    assert recorder.totals.wall_s == recorder.counted_s == 200.0
    assert device.waits == 2  # one for the last span, and one to compare the clocks
    first, second = recorder.trace
    assert second.start_s - first.start_s == pytest.approx(4.0)
    assert second.end_s - second.start_s == pytest.approx(3.0)


def test_losses_are_summed_in_float64() -> None:
    """In float32, the sum would stay at 2 ** 24, and a loss of thousands of batches be wrong."""
    sums = Sums()
    for _ in range(3):
        sums.add(torch.tensor(2.0**24), 1, torch.zeros(1, 1))
        sums.add(torch.tensor(1.0), 1, torch.zeros(1, 1))
    assert sums.loss == 3 * (2**24 + 1)
