"""Copies of batches to a CUDA device. A fake `torch.cuda` records all calls."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppll_cli.data import staging
from ppll_cli.data.batches import Ahead
from ppll_cli.data.staging import SideStream, to_device
from ppll_cli.data.synthetic import Synthetic

Options = Callable[..., dict[str, Any]]
CUDA = torch.device("cuda", 1)


def test_a_copy_to_the_cpu_returns_the_same_tensor() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor


class FakeTensor:
    """Records the calls that it gets."""

    device = torch.device("cpu")
    is_cuda = True

    def __init__(self, log: list[object], name: str = "") -> None:
        self.log, self.name = log, name

    def pin_memory(self) -> "FakeTensor":
        self.log.append("pin")
        return self

    def to(self, *args: object, **kwargs: object) -> "FakeTensor":
        self.log.append((args, kwargs))
        return self

    def record_stream(self, stream: object) -> None:
        self.log.append(f"{self.name} is read by {stream}")


def test_a_copy_to_a_device_is_pinned_and_does_not_wait() -> None:
    log: list[object] = []
    to_device(FakeTensor(log), CUDA)  # type: ignore[arg-type]
    assert log == ["pin", ((CUDA,), {"non_blocking": True})]


def test_a_tensor_on_a_device_is_not_pinned() -> None:
    log: list[object] = []
    tensor = FakeTensor(log)
    tensor.device = CUDA
    to_device(tensor, CUDA)  # type: ignore[arg-type]
    assert log == [((CUDA,), {})]


class FakeCuda:
    """The part of `torch.cuda` that manages streams. It records all calls in `log`."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.Stream = lambda _: FakeStream(self, "side")
        self.Event = lambda: FakeEvent(self)

    def say(self, text: str) -> None:
        in_thread = threading.current_thread() is not threading.main_thread()
        self.log.append(f"{'thread' if in_thread else 'main'}: {text}")

    def current_stream(self, device: object) -> "FakeStream":
        assert device == CUDA
        return FakeStream(self, "main stream")

    def set_device(self, device: object) -> None:
        self.say(f"set {device}")

    def set_stream(self, stream: object) -> None:
        self.say(f"set {stream}")


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def __str__(self) -> str:
        return self.name

    def wait_stream(self, other: object) -> None:
        self.cuda.say(f"{self} waits for {other}")

    def wait_event(self, event: object) -> None:
        self.cuda.say(f"{self} waits for event")


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def record(self, stream: object) -> None:
        self.cuda.say(f"event on {stream}")


class OneBatch:
    """Makes one batch.

    A tensor of it is on the device; another one was left on the host by a user's data set.
    """

    steps_per_epoch = 1

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def train(self, epoch: int, batch: int) -> dict[str, Any]:
        self.cuda.say("made")
        return {"x": FakeTensor(self.cuda.log, "x"), "host": torch.zeros(1)}

    def evaluation(self, split: str, batch: int, size: int) -> dict[str, Tensor]:
        raise NotImplementedError


def test_a_batch_is_made_on_its_own_stream_and_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's stream waits for the batch, but its host does not.

    The memory is kept for this stream.
    """
    cuda = FakeCuda()
    monkeypatch.setattr(staging, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.Generator() for _ in range(2)])
    made = Ahead(OneBatch(cuda), torch.get_num_threads(), 0, CUDA).train(0, 0)
    assert made.keys() == {"x", "host"}
    assert cuda.log == [
        "main: side waits for main stream",
        "thread: set cuda:1",
        "thread: set side",
        "thread: made",
        "thread: event on side",
        "main: main stream waits for event",
        "x is read by main stream",
    ]


def test_on_the_cpu_a_side_stream_does_nothing() -> None:
    side = SideStream(torch.device("cpu"))
    side.enter()
    made = side.mark()
    assert made is None
    side.hand_over({"x": torch.zeros(1)}, made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_batches_on_cuda_do_not_wait_and_equal_those_on_the_cpu(options: Options) -> None:
    """The worker's stream is busy, and the host frees memory that this stream still reads."""
    changes: dict[str, Any] = {"size": 32, "channels": 3, "classes": 4, "train_samples": 640}
    changes |= {"test_samples": 8, "pad": 4, "pad_mode": "zeros", "flip": True}
    dataset = Synthetic(**options(**changes))
    device = torch.device("cuda", 0)
    plain = dataset.batches(dataset.load(), 64, 0, torch.device("cpu"))
    on_cuda = dataset.batches(dataset.load(), 64, 0, device)
    ahead, sums = Ahead(on_cuda, 1, 0, device), []
    ahead.train(0, 0)
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in range(1, 10):
            torch.cuda._sleep(10**7)  # type: ignore[no-untyped-call]
            sums.append(ahead.train(0, batch)["image"].double().sum(dim=0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, found in enumerate(sums, start=1):
        expected = plain.train(0, batch)["image"].double().sum(dim=0)
        # CUDA multiplies by 1 / 255 where the CPU divides by 255.
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
