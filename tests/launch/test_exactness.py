"""Runs with processes and channels have the same bits as runs with threads.

`tests/worker/test_exactness.py` compares schedules, methods and models with one another in threads.
So these tests only show that processes and their channels change nothing.
"""

from pathlib import Path

import pytest

from tests.conftest import Runner, assert_same, own_model
from tests.worker.cases import DATA, FEW_STEPS, METHODS, RESNET, SGD, VIT
from tests.worker.inside import run_inside

CASES = {
    "ppll": ["schedule=ppll", "gpus=3", "local=dgl", "local.modules=5", *RESNET, *SGD],
    "every unit": ["schedule=ppll", "gpus=2", "local=vit_blocks", "local.modules=6", *VIT],
    "bank": ["schedule=ppll", "gpus=3", "fba=on", "local.modules=6", *VIT],
    "gpipe": ["schedule=gpipe", "schedule.microbatches=8", "gpus=3", *RESNET, *SGD],
    "1f1b": ["schedule=1f1b", "gpus=2", *VIT, "optim.clip_norm=0.1"],
    "interleaved": ["schedule=interleaved", "gpus=3", *RESNET, *SGD],
    "zb_h1": ["schedule=zb_h1", "gpus=4", *VIT],
}


SLOW = ["ppll", "every unit", "gpipe", "1f1b", "interleaved", "zb_h1"]
"""Slow cases. The other cases have the same kinds of messages: one way, both ways, and banks."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, c in CASES.items()],
)
def test_worker_processes_train_the_same_as_threads(
    run: Runner, tmp_path: Path, case: list[str]
) -> None:
    """Most other tests use threads. This one shows that real workers end with the same bits."""
    expected = run_inside(tmp_path / "inside", FEW_STEPS, *DATA, *case)
    found = run(FEW_STEPS, *DATA, *case)
    assert_same(found.tensors(), expected.tensors)
    (_, last), (loss, _) = max(expected.test.items())
    assert found.summary["modules"] == last + 1
    assert found.test["loss"] == loss / 7  # the sum over all samples


@pytest.mark.parametrize(
    "schedule", ["1f1b", *(pytest.param(s, marks=pytest.mark.slow) for s in ("ppll", "gpipe"))]
)
def test_transports_carry_the_same_bits(run: Runner, tmp_path: Path, schedule: str) -> None:
    """Messages are read in place or mapped.

    They have strides, gradients, and a short last batch.
    """
    case = [f"schedule={schedule}", "gpus=3", FEW_STEPS, *DATA, *own_model("Skipping")]
    ring, queue = (run(f"transport={name}", *case) for name in ("ring", "queue"))
    assert_same(queue.tensors(), ring.tensors())
    assert_same(ring.tensors(), run_inside(tmp_path / "inside", *case).tensors)
    assert queue.summary["edges"] == ring.summary["edges"]
    assert ring.summary["edges"][0]["names"] == ["label", "skip", "x"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "names"),
    [
        pytest.param("predsim", [["label", "x"]] * 2, marks=pytest.mark.slow),
        pytest.param("slm", [["label", "x"]] * 2, marks=pytest.mark.slow),
        # By default, the auxiliary network of the seventh of eight modules has no decoder.
        pytest.param(
            *("infopro", [["image", "label", "x"], ["label", "x"]]), marks=pytest.mark.slow
        ),
        pytest.param(
            *("fba", [[*(f"bank.{n}" for n in range(m)), "label", "x"] for m in (3, 6)]),
            marks=pytest.mark.slow,
        ),
        ("fba last two", [[f"bank.{m - 2}", f"bank.{m - 1}", "label", "x"] for m in (3, 6)]),
    ],
)
def test_only_tensors_that_a_later_module_reads_are_sent(
    run: Runner, method: str, names: list[list[str]]
) -> None:
    """The stages have 3, 3 and 2 modules. The reported bytes are the size of the sent tensors."""
    case = [*METHODS[method], *RESNET, *SGD, "local.modules=8", "max_steps=2", "eval_every=9"]
    summary = run("gpus=3", *DATA, *case, "data.drop_last=true").summary
    edges = summary["edges"]
    assert [edge["names"] for edge in edges] == names
    channels = {0: 16, 1: 16, 2: 16, 3: 32, 4: 32, 5: 64}  # channels of each module's output
    side = {2: 8, 5: 2}
    for edge, last in zip(edges, (2, 5), strict=True):
        values = {"image": 3 * 8 * 8, "x": channels[last] * side[last] ** 2, "label": 2}
        size = sum(
            values[name] if name in values else channels[int(name.removeprefix("bank."))]
            for name in edge["names"]
        )
        samples = 2 * 8 + 7  # two training batches, and the test set once
        assert edge["bytes_sent"] == 4 * size * samples
