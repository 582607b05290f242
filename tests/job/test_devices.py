"""Checks, before workers start, that this machine has what they need."""

import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from ppll_cli.config.settings import Settings, parse
from ppll_cli.errors import ConfigError
from ppll_cli.job import devices
from ppll_cli.job.devices import check_processors, device_of, devices_here
from ppll_cli.leaves import cuda
from tests.conftest import compose_config, prepared, pretend_devices


def settings(*overrides: str) -> Settings:
    return parse(compose_config(list(overrides))[0])


def found(monkeypatch: pytest.MonkeyPatch, *programs: str, triton: bool = True) -> None:
    """Pretend that only these programs are installed, and perhaps Triton."""
    monkeypatch.setattr(shutil, "which", lambda name: name if name in programs else None)
    spec = ModuleSpec("triton", None) if triton else None
    monkeypatch.setattr(devices, "find_spec", lambda _: spec)
    monkeypatch.setattr(devices, "_python_header", lambda: Path(__file__))
    for variable in devices.INCLUDE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("device", "programs", "missing"),
    [
        ("cuda:0", ["gcc"], ""),
        ("cuda:0", ["clang"], ""),
        ("cuda:0", ["g++", "clang++"], "needs a C compiler for workers on CUDA.*variable CC"),
        ("cpu", ["g++"], ""),
        ("cpu", ["clang++"], ""),
        ("cpu", ["gcc", "clang"], r"needs a C\+\+ compiler for workers on CPU.*variable CXX"),
    ],
)
def test_compile_is_refused_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, device: str, programs: list[str], missing: str
) -> None:
    found(monkeypatch, *programs)
    if not missing:
        check_processors(settings("compile=true"), (device,), [])
        return
    with pytest.raises(ConfigError, match=missing):
        check_processors(settings("compile=true"), (device,), [])
    check_processors(settings("compile=false"), (device,), [])


def test_compile_on_cuda_uses_only_the_compiler_named_by_cc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found(monkeypatch, "gcc", "mycc")
    monkeypatch.setenv("CC", "mycc")
    check_processors(settings("compile=true"), ("cuda:0",), [])
    monkeypatch.setenv("CC", "gone")  # Triton looks for no other compiler
    with pytest.raises(ConfigError, match="needs a C compiler"):
        check_processors(settings("compile=true"), ("cuda:0",), [])


def test_compile_on_cuda_is_refused_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "gcc", triton=False)
    with pytest.raises(ConfigError, match="needs Triton"):
        check_processors(settings("compile=true"), ("cuda:0",), [])


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_compile_is_refused_without_the_headers_of_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str
) -> None:
    """A compiler failed in the first batch of each worker, with pages of its output."""
    header = devices._python_header()
    assert header.name == "Python.h"
    found(monkeypatch, "gcc", "g++")
    monkeypatch.setattr(devices, "_python_header", lambda: tmp_path / header.name)
    with pytest.raises(ConfigError, match=f"there is no {tmp_path}/Python.h; install them"):
        check_processors(settings("compile=true"), (device,), [])
    with monkeypatch.context() as changed:
        changed.setenv("CPATH", "/where/a/user/unpacked/them")
        check_processors(settings("compile=true"), (device,), [])
    (tmp_path / header.name).touch()
    check_processors(settings("compile=true"), (device,), [])


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_tf32_is_refused_on_cpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Both a run and a plan are refused."""
    pretend_devices(monkeypatch, 0)
    for check in (prepared, lambda *overrides: device_of(settings(*overrides))):
        with pytest.raises(ConfigError, match="precision=tf32: is for CUDA devices") as caught:
            check("precision=tf32", f"device={device}")
        assert "use precision=fp32" in str(caught.value)


def test_tf32_is_accepted_on_cuda() -> None:
    check_processors(settings("precision=tf32"), ("cuda:0", "cuda:1"), [])


def test_devices_that_torch_cannot_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML counts a device although the driver is too old for torch.

    The workers then failed one after the other, even with `device=auto`.
    """
    reason = "torch cannot use the CUDA device: the driver is too old"
    pretend_devices(monkeypatch, 0)
    monkeypatch.setattr(cuda, "why_none", lambda: reason)
    with pytest.raises(ConfigError) as caught:
        devices_here(settings("device=cuda"), 2, [])
    assert str(caught.value) == f"device=cuda: {reason}; use device=cpu"
    notes = list[str]()
    assert devices_here(settings(), 2, notes) == (("cpu", "cpu"), False)
    assert notes == [f"{reason}: 2 worker(s) on CPU"]
