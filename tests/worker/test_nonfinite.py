"""An optimizer step whose gradients or loss are not finite."""

import pytest
import torch

from ppll_cli.errors import NonFiniteError
from tests.worker.test_chunk import MODELS, held, job_of


@pytest.mark.parametrize("index", [0, -1])
def test_the_largest_gradient_is_infinite_if_one_is_not_a_number(index: int) -> None:
    """NaN is neither larger nor smaller than other numbers, so `max` alone might ignore it."""
    (chunk,) = held(job_of(*MODELS["vit"], "schedule=bp", "gpus=1"))
    for parameter in chunk.parameters:
        parameter.grad = torch.ones_like(parameter)
    gradient = chunk.parameters[index].grad
    assert gradient is not None
    gradient.fill_(float("nan"))
    chunk.nonfinite.found = True  # a loss was not finite
    with pytest.raises(NonFiniteError, match="gradient norm in the chunk that computes it is inf"):
        chunk.step(3, None)


@pytest.mark.parametrize("at_once", [True, False], ids=["CPU", "CUDA"])
def test_only_the_last_chunk_of_a_module_reports_a_skipped_step(
    caplog: pytest.LogCaptureFixture, at_once: bool
) -> None:
    """All chunks of the module skip the step.

    On CUDA, flags of other chunks would never be read.
    """
    job = job_of(*MODELS["vit"], "schedule=gpipe", "gpus=2", "optim.nonfinite=skip")
    (first,), (last,) = held(job, 0), held(job, 1)
    for chunk in (first, last):
        chunk.nonfinite._reads_at_once = at_once
        before = [p.detach().clone() for p in chunk.parameters]
        for parameter in chunk.parameters:
            parameter.grad = torch.ones_like(parameter)
        chunk.step(3, torch.tensor(float("nan"), dtype=torch.float64))
        assert all(map(torch.equal, before, chunk.parameters))
    assert not first.nonfinite.skipped
    assert list(last.nonfinite.skipped) == ([] if at_once else [3])
    told = "step 3 of module 0 is skipped: its gradient norm is not finite"
    assert [record.getMessage() for record in caplog.records] == [told] * at_once


def test_a_finite_loss_does_not_hide_that_an_earlier_one_was_not() -> None:
    (chunk,) = held(job_of(*MODELS["vit"], "schedule=bp", "gpus=1"))
    for loss in (1.0, float("inf"), 2.0):  # of micro-batches of one batch
        chunk.nonfinite.check(torch.tensor(loss))
    assert chunk.nonfinite.found
