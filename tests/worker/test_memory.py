import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppll_cli.worker import memory as memories
from ppll_cli.worker.memory import Memory

SCRIPT = """
import resource, sys
import torch
from ppll_cli.worker.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def faults(repetitions):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repetitions):
        torch.zeros(100 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(20)
print(faults(10))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for glibc")
def test_freed_memory_is_reused_without_asking_the_system() -> None:
    """Ten tensors of 100 MiB have 256,000 pages of 4 KiB, or 500 pages of 2 MiB."""

    def faults(how: str) -> int:
        command = [sys.executable, "-c", SCRIPT, how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return int(done.stdout)

    assert faults("keep") < 50 < faults("give back")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")
def test_the_peak_is_that_of_the_steady_state() -> None:
    """A worker that is restarted continues from the peak that a snapshot has saved."""
    memory = Memory(torch.device("cpu"))
    assert (memory.peak(), memory.reserved()) == (None, None)
    memory.continue_from(1 << 50, None)
    assert memory.peak() == 1 << 50
    memory.begin_peak()
    assert memory.peak() in (None, 1 << 50)  # unknown if Linux does not let the peak be reset


def test_without_proc_memory_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a chroot without /proc, each worker died when it started."""
    monkeypatch.setattr(memories, "STATUS", tmp_path / "status")
    assert Memory(torch.device("cpu")).now() is None
