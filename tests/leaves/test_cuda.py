"""Questions to the CUDA driver, answered by a fake driver."""

import warnings
from typing import Any

import pytest
import torch

from ppll_cli.leaves import cuda
from tests.warm import passes_in_a_new_process


class Driver:
    """A fake driver with three devices.

    The first two can access each other; handles differ from device numbers.
    """

    def __init__(self, error: int = 0, unknown: int = 0) -> None:
        self.error, self.unknown = error, unknown

    def cuDeviceGet(self, handle: Any, ordinal: int) -> int:  # noqa: N802
        handle._obj.value = 10 + ordinal
        return self.error

    def cuDeviceGetName(self, text: Any, size: int, handle: Any) -> int:  # noqa: N802
        assert size == len(text)
        text.value = b"Model %d" % handle.value
        return 0

    def cuDeviceCanAccessPeer(self, found: Any, one: Any, other: Any) -> int:  # noqa: N802
        found._obj.value = {one.value, other.value} == {10, 11}
        return 0

    def cuDeviceGetAttribute(self, found: Any, attribute: int, handle: Any) -> int:  # noqa: N802
        assert attribute == 125
        found._obj.value = handle.value == 10
        return self.unknown


@pytest.fixture(autouse=True)
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy_init() -> None:
        raise AssertionError("a context would be made here")

    monkeypatch.setattr(torch.cuda, "_lazy_init", lazy_init)


def test_the_driver_gives_names_and_peer_access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_driver", Driver)
    assert cuda.device_name("cuda:1") == "Model 11"
    assert cuda.device_name("cuda") == "Model 10"
    assert cuda.can_access_peer("cuda:0", "cuda:1")
    assert not cuda.can_access_peer("cuda:0", "cuda:2")


def test_the_driver_says_which_devices_processes_can_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old drivers do not know the attribute, and other libraries have no such driver."""
    monkeypatch.setattr(cuda, "_driver", Driver)
    assert cuda.supports_ipc("cuda:0")
    assert not cuda.supports_ipc("cuda:1")
    monkeypatch.setattr(cuda, "_driver", lambda: Driver(unknown=1))
    assert cuda.supports_ipc("cuda:1")
    monkeypatch.setattr(cuda, "_driver", lambda: None)
    assert cuda.supports_ipc("cuda:1")


def test_an_error_of_the_driver_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: Driver(error=101))
    with pytest.raises(RuntimeError, match="error 101"):
        cuda.device_name("cuda:7")


def test_torch_is_asked_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm's driver has another name, so it is not found."""
    monkeypatch.setattr(cuda, "_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"torch's {device}")
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: one < other)
    assert cuda.device_name("cuda:0") == "torch's cuda:0"
    assert cuda.can_access_peer("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("counted", "usable", "warned", "reason"),
    [
        (0, False, "", "there is no CUDA device"),
        (2, True, "", ""),
        (
            2,
            False,
            "CUDA initialization: The driver is too old. (Triggered internally at file.cpp:1.)",
            "torch cannot use the CUDA device: CUDA initialization: The driver is too old.",
        ),
        (1, False, "", "torch cannot use the CUDA device: no reason is known"),
    ],
)
def test_only_devices_that_torch_can_use_count(
    monkeypatch: pytest.MonkeyPatch, counted: int, usable: bool, warned: str, reason: str
) -> None:
    def available() -> bool:
        if warned:
            warnings.warn(warned, stacklevel=1)
        return usable

    monkeypatch.setattr(torch.cuda, "device_count", lambda: counted)
    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(cuda, "why_none", cuda.why_none.__wrapped__)  # without its cache
    assert cuda.why_none() == reason
    assert cuda.device_count() == (counted if usable else 0)


@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="there is no CUDA device")
def test_driver_and_torch_agree() -> None:
    """A new process is needed, because earlier tests may have initialised CUDA in this one."""
    code = (
        "import torch\n"
        "from ppll_cli.leaves import cuda\n"
        "found = [cuda.device_name(f'cuda:{n}') for n in range(torch.cuda.device_count())]\n"
        "assert cuda.device_count() == len(found)\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert found == [torch.cuda.get_device_name(n) for n in range(len(found))]\n"
    )
    assert passes_in_a_new_process(code)
