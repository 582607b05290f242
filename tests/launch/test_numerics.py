"""The switches of torch that `precision` and `deterministic` set, and the record of them."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.deterministic

from ppll_cli.job.numerics import Numerics, in_force
from tests.conftest import Runner
from tests.warm import passes_in_a_new_process

MEMORY: Any = torch.utils.deterministic  # type checkers do not see its property

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TINY = ["data=synthetic", "data.size=8", "data.train_samples=16", "data.test_samples=8"]
TINY += ["batch_size=8", "model.dim=16", "model.depth=2", "model.heads=2", "epochs=1", "gpus=1"]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Restore all switches after the test."""
    with Numerics("fp32", False).applied(CPU):
        yield


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_precision_and_deterministic_set_torchs_switches_on_cuda(
    precision: str, deterministic: bool
) -> None:
    """With torch's own defaults, fp32 meant fp32 in matrix products, but TF32 in convolutions."""
    Numerics(precision, deterministic).apply(CUDA)
    tf32 = precision == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert MEMORY.fill_uninitialized_memory is not deterministic
    assert in_force(CUDA) == {
        "deterministic": deterministic,
        "tf32_matmul": tf32,
        "tf32_convolution": tf32,
        "cudnn_benchmark": not deterministic,
    }


def test_applied_restores_torchs_switches() -> None:
    before = in_force(CUDA)
    with Numerics("tf32", True).applied(CUDA):
        assert in_force(CUDA) != before
    assert in_force(CUDA) == before
    assert MEMORY.fill_uninitialized_memory


def test_no_cuda_switch_is_in_force_on_cpu() -> None:
    Numerics("fp32", False).apply(CUDA)
    assert not any(in_force(CPU).values())


def test_torchs_warning_about_allow_tf32_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """From version 2.9 on, some versions of torch warn if these switches are used."""

    def benchmark_that_warns(*_: object) -> bool:
        warnings.warn("Please use the new API settings to control TF32 behavior", stacklevel=1)
        return False

    monkeypatch.setattr(torch._C, "_get_cublas_allow_tf32", benchmark_that_warns)
    monkeypatch.setattr(torch._C, "_set_cublas_allow_tf32", benchmark_that_warns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Numerics("tf32", False).apply(CUDA)


def test_old_and_new_tf32_switches_of_torch_agree() -> None:
    """If only the new switches enable TF32, torch.compile fails in some versions of torch.

    Warnings of the import of torch are not errors here, because the process has imported it before.
    """
    code = (
        "import torch, warnings\n"
        "warnings.simplefilter('error')\n"
        "from ppll_cli.job.numerics import Numerics\n"
        "Numerics('tf32', False).apply(torch.device('cuda'))\n"
        "assert torch.get_float32_matmul_precision() == 'high'\n"
        "assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32\n"
        "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'\n"
        "assert torch.backends.cudnn.conv.fp32_precision == 'tf32'\n"
    )
    assert passes_in_a_new_process(code)


@pytest.mark.parametrize("deterministic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_summary_records_torchs_switches(run: Runner, deterministic: bool) -> None:
    summary = run(*TINY, f"deterministic={str(deterministic).lower()}").summary
    assert summary["precision"] == "fp32"
    assert summary["numerics"] == {
        "deterministic": deterministic,
        "tf32_matmul": False,
        "tf32_convolution": False,
        "cudnn_benchmark": False,
    }
