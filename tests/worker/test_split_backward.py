"""The halves of a backward compute the bits of a whole one, for all models of the program."""

from pathlib import Path

import pytest
import torch

from ppll_cli.pipeline.gradients import whole_backwards
from ppll_cli.pipeline.instructions import Backward, BackwardInput, BackwardWeight
from ppll_cli.worker.chunk import HeldChunk
from tests.conftest import assert_same, prepared
from tests.worker.chunks import CPU, DATA, MODELS, SIZES, job_of, kinds, trained

HOW = [["optim=sgd", "precision=fp32"], ["optim=adamw", "precision=bf16"]]
ALWAYS = ["vit", "resnet32", "skipping"]
IN_BF16 = ["vit", "resnet32"]
"""Models that are always tested in bf16, and as slow tests in fp32. For `skipping`, the reverse."""

CRASHES = pytest.mark.skipif(
    torch.__version__ < "2.14",
    reason="torch 2.11 crashes on CPU, in a backward of GroupNorm only to its weights",
)


@pytest.mark.parametrize(
    ("model", "how"),
    [
        pytest.param(
            *(model, how),
            id=" ".join([model, *how]),
            marks=[pytest.mark.slow]
            * (model not in ALWAYS or (how is HOW[1]) != (model in IN_BF16))
            + [CRASHES] * (model == "retinanet group"),
        )
        for model in MODELS
        for how in HOW
    ],
)
def test_halves_have_the_gradients_of_the_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, list[str]],
    model: str,
    how: list[str],
) -> None:
    """Gradients of all kinds of units are compared, for unequal micro-batches, after steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = job_of(tmp_path, files, model, *how)
    numbers, split = kinds(job), 0
    for number in numbers:
        expected, sent = trained(job, number, split=False)
        found, halves = trained(job, number, split=True)
        assert_same(found, expected)
        inputs = len(job.routes.into[number].gradients)
        split += inputs > 0
        assert len(sent) == len(halves) >= 2 * len(SIZES) * inputs
        assert all(map(torch.equal, sent, halves))
    assert split >= len(numbers) - 1


def test_the_cases_have_names_that_pass_through_and_units_without_parameters(
    tmp_path: Path, files: dict[str, list[str]]
) -> None:
    skipping = job_of(tmp_path, files, "skipping").routes
    edsr = job_of(tmp_path, files, "edsr").routes
    for routes, name in ((skipping, "skip"), (edsr, "first")):
        assert any(name in routes.passing(n) & {*routes.into[n].gradients} for n in range(1, 4))
    idle = job_of(tmp_path, files, "idle")
    last = HeldChunk(idle, 2, idle.site(idle.units()), CPU)
    assert not last.unit_parameters[0]
    assert idle.routes.into[2].gradients == ("x",)


METHODS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/local").glob("*.yaml"))
ALWAYS = ["greedy", "fba", "man"]
"""Methods that read only the module's feature, also earlier features, or also later weights."""


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m not in ALWAYS)) for m in METHODS]
)
def test_under_local_learning_nothing_is_split(method: str) -> None:
    """No gradient is sent back to a module, so backwards of modules and of losses are whole."""
    case = ["schedule=ppll", "gpus=2", "local.modules=4", *DATA, *MODELS["vit"]]
    job = prepared(*case, f"local={method}", "batch_size=4").job
    place = job.place(0, 1)
    halves = [kind(chunk, 0) for chunk in place.chunks for kind in (BackwardInput, BackwardWeight)]
    assert whole_backwards(place, halves) == [Backward(chunk, 0) for chunk in place.chunks]
