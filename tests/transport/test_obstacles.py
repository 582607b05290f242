"""Reasons why a transport cannot be used, which are found before training starts."""

import resource
from pathlib import Path

import pytest
import torch

from ppll_cli.errors import ConfigError
from ppll_cli.leaves import cuda
from ppll_cli.transport import descriptors, devices, memory
from ppll_cli.transport.channel import Transport
from ppll_cli.transport.choice import usable
from ppll_cli.transport.descriptors import OWN, check_descriptors, raise_limit
from ppll_cli.transport.memory import HostMemory, remove_left
from ppll_cli.transport.queue import QueueTransport
from ppll_cli.transport.ring import RingTransport
from tests.conftest import shared_memory

CUDA = ["cuda:0", "cuda:1"]


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*devices.ALLOCATOR_VARIABLES, devices.NO_CACHE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("variable", devices.ALLOCATOR_VARIABLES)
@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("expandable_segments:True", "expandable_segments:True"),
        ("max_split_size_mb:64, expandable_segments : True", "expandable_segments : True"),
        ("backend:cudaMallocAsync", "backend:cudaMallocAsync"),
        ("expandable_segments:False,backend:native", None),
        ("", None),
    ],
)
def test_allocator_settings_that_prevent_sharing_are_found(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, found: str | None
) -> None:
    monkeypatch.setenv(variable, value)
    reason = f"{variable} has {found}, so CUDA memory cannot be shared"
    assert devices.cannot_share() == (found and reason)


def test_memory_outside_torchs_allocator_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch only checks whether the variable exists, and ignores its value."""
    monkeypatch.setenv(devices.NO_CACHE_VARIABLE, "0")
    reason = f"{devices.NO_CACHE_VARIABLE} is set, so CUDA memory cannot be shared"
    assert devices.cannot_share() == reason


def test_devices_without_ipc_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "supports_ipc", lambda device: device == "cuda:0")
    assert devices.cannot_share("cuda:0", "cuda:0") is None
    reason = "cuda:1 does not support CUDA IPC, so CUDA memory cannot be shared"
    assert devices.cannot_share(*CUDA) == reason
    assert QueueTransport(depth=1).obstacle(100, CUDA) == reason


def test_devices_without_peer_access_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "can_access_peer", lambda one, other: other == "cuda:2")
    assert devices.cannot_reach("cuda:1", "cuda:1") is None
    assert devices.cannot_reach("cuda:0", "cuda:2") is None
    reason = "there is no peer access between cuda:0 and cuda:1"
    assert devices.cannot_reach("cuda:1", "cuda:0") == reason


def test_a_transport_that_works_is_used() -> None:
    for transport in (RingTransport(depth=1), QueueTransport(depth=1)):
        assert usable("it", transport, 1000, ["cpu", "cpu"]) is transport


def test_queue_replaces_a_ring_without_room_on_cuda(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared_memory(monkeypatch, 3 << 20)
    monkeypatch.setattr(cuda, "can_access_peer", lambda *_: False)
    used = usable("ring", RingTransport(depth=3), 5 << 20, CUDA)
    assert isinstance(used, QueueTransport)
    assert used.depth == 3
    assert caplog.messages == [
        "transport=ring: its slots take 5 MiB, but /dev/shm has room for 2 MiB; using queue instead"
    ]


@pytest.mark.parametrize("transport", [RingTransport(depth=1), QueueTransport(depth=1)])
def test_without_room_in_shared_memory_a_run_on_cpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, transport: Transport
) -> None:
    """The program once used the queue instead.

    SIGBUS then killed it: queues need this memory too.
    """
    shared_memory(monkeypatch, 3 << 20)
    with pytest.raises(ConfigError) as refused:
        usable("it", transport, 9 << 20, ["cpu", "cpu"])
    assert str(refused.value) == (
        "transport=it: its slots take 9 MiB, but /dev/shm has room for 2 MiB; enlarge /dev/shm to "
        "71 MiB (docker run --shm-size=71m), or use a smaller batch_size"
    )
    assert usable("it", transport, 2 << 20, ["cpu", "cpu"]) is transport


def refusal(name: str, transport: Transport, size: int = 1000) -> str:
    with pytest.raises(ConfigError) as refused:
        usable(name, transport, size, CUDA)
    return str(refused.value)


def test_queue_is_refused_if_cuda_memory_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert refusal("queue", QueueTransport(depth=1)) == (
        "transport=queue: PYTORCH_ALLOC_CONF has expandable_segments:True, so CUDA memory "
        "cannot be shared; use transport=ring, or change this setting"
    )
    assert refusal("queue", QueueTransport(depth=1, ipc=False)) == (
        "transport=queue: transport.ipc=false, so no CUDA memory is shared; use transport=ring, or "
        "change this setting"
    )
    alone = QueueTransport(depth=1)
    assert usable("queue", alone, 0, ["cuda:0"]) is alone  # no tensor is sent
    ring_used = RingTransport(depth=1)
    assert usable("ring", ring_used, 1000, CUDA) is ring_used  # through pinned host memory


def test_a_run_is_refused_if_neither_transport_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    shared_memory(monkeypatch, 3 << 20)
    assert refusal("ring", RingTransport(depth=1), size=5 << 20) == (
        "transport=ring: its slots take 5 MiB, but /dev/shm has room for 2 MiB; queue "
        "cannot be used either: PYTORCH_ALLOC_CONF has expandable_segments:True, so CUDA memory "
        "cannot be shared; make room in /dev/shm, or change this setting"
    )
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    assert "transport.ipc=false" in refusal("ring", RingTransport(depth=1, ipc=False), size=5 << 20)


class Limits:
    """A fake limit on file descriptors, so that tests do not change the real one."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.now

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        self.now = limits


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Pretend that 10 descriptors are open, the limit is 200, and it can be raised to 1000."""
    limits = Limits(200, 1000)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    monkeypatch.setattr(descriptors, "_open_now", lambda: 10)
    return limits


def chain(workers: int, slots: int) -> list[tuple[int, int, int]]:
    return [(stage, stage + 1, slots) for stage in range(workers - 1)]


def test_the_limit_of_descriptors_is_raised(limits: Limits) -> None:
    assert raise_limit() == 1000
    assert limits.now == (1000, 1000)


def test_a_limit_of_descriptors_that_cannot_be_raised_stays(
    limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(which: int, new: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit() == 200


def test_any_number_of_descriptors_fits_without_a_limit(limits: Limits) -> None:
    limits.now = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    check_descriptors("queue", QueueTransport(depth=1), 9, chain(9, slots=10**6), tensors=10)


def test_too_few_descriptors_for_the_parent_are_refused(limits: Limits) -> None:
    """For 108 workers, 1000 descriptors are enough: 10 + 128 + 108 * 3 + 107 * 5 = 997."""
    transport = RingTransport(depth=1)
    check_descriptors("ring", transport, 108, chain(108, slots=3), tensors=2)
    with pytest.raises(ConfigError) as refused:
        check_descriptors("ring", transport, 109, chain(109, slots=3), tensors=2)
    assert str(refused.value) == (
        "gpus=109: the parent process needs 1005 file descriptors, but may open only 1000; "
        "allow more (`ulimit -n 1005`, which may need an administrator) or use fewer gpus"
    )


def test_too_few_descriptors_for_a_worker_are_refused(limits: Limits) -> None:
    """A queue needs a descriptor for each tensor in a slot. The middle worker has two channels."""
    check_descriptors("queue", QueueTransport(depth=1), 3, chain(3, slots=200), tensors=2)
    with pytest.raises(ConfigError) as refused:
        check_descriptors("queue", QueueTransport(depth=1), 3, chain(3, slots=300), tensors=2)
    needed = OWN + 2 * (3 + 301 * 2)
    assert str(refused.value) == (
        f"transport=queue: a worker needs {needed} file descriptors, but may open only 1000; "
        f"allow more (`ulimit -n {needed}`, which may need an administrator) or use transport=ring"
    )
    check_descriptors("ring", RingTransport(depth=1), 3, chain(3, slots=300), tensors=2)
    limits.now = (100, 100)
    with pytest.raises(ConfigError, match=r"^transport=ring: a worker .* an administrator\)$"):
        check_descriptors("ring", RingTransport(depth=1), 3, chain(3, slots=300), tensors=2)


def test_one_worker_needs_few_descriptors(limits: Limits) -> None:
    check_descriptors("ring", RingTransport(depth=1), 1, [], tensors=0)


def test_files_that_a_worker_left_in_shared_memory_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "SHARED_MEMORY", tmp_path)
    own = "torch_12_3_0", "cuda.shm.0.c.1", "cuda.shm.3e8.c.2"
    others = {"torch_123_4_0", "other_12_1_0", "cuda.shm.c.12.1", "cuda.shm.0.cc.1"}
    for name in (*own, *others):
        (tmp_path / name).touch()
    remove_left(12)
    assert {path.name for path in tmp_path.iterdir()} == others


class Runtime:
    """The part of the CUDA runtime that pins memory."""

    def __init__(self, error: int) -> None:
        self._error = error
        self.registered: list[tuple[int, int, int]] = []
        self.released: list[int] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        self.registered.append((address, size, flags))
        return self._error

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.released.append(address)
        return 0


def test_both_ends_pin_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(error=0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    tensor = torch.zeros(4096, dtype=torch.uint8)
    producer, consumer = HostMemory(tensor, pinned=True), HostMemory(tensor, pinned=True)
    producer.open()
    assert consumer.offer() == b""
    portable = 1
    assert runtime.registered == [(tensor.data_ptr(), 4096, portable)] * 2


def test_pinned_memory_is_unpinned_before_it_is_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise CUDA would regard other memory at this address as pinned, and copy to old pages."""
    runtime, waited = Runtime(error=0), list[bool]()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(not runtime.released))
    tensor = torch.zeros(4096, dtype=torch.uint8)
    address = tensor.data_ptr()
    memory = HostMemory(tensor, pinned=True)
    memory.open()
    del tensor
    assert runtime.released == []
    del memory
    assert runtime.released == [address]
    assert waited == [True]  # before the memory was unpinned


def test_a_failure_to_pin_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime(error=2))
    memory = HostMemory(torch.zeros(3 << 20, dtype=torch.uint8), pinned=True)
    message = r"^3 MiB of host memory cannot be pinned: CUDA error 2$"
    with pytest.raises(RuntimeError, match=message):
        memory.open()


def test_memory_of_cpu_workers_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(error=0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    HostMemory(torch.zeros(1, dtype=torch.uint8), pinned=False).open()
    assert not runtime.registered
