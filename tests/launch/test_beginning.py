"""What a resumed run takes from the files of the run before, and which runs cannot resume."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.job import checkpoint
from ppll_cli.job.manifest import Manifest
from ppll_cli.launch import beginning
from tests.conftest import Result, Runner, resumed
from tests.data.picture_files import write_div2k

RESNET = ["model=resnet32", "model.depth=8", "data=synthetic", "data.size=8", "local.modules=2"]
RESNET += ["data.train_samples=16", "data.test_samples=4", "batch_size=4", "max_steps=2"]

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def rewrite(run_dir: Path, change: Change) -> None:
    """Change the tensors of the last checkpoint, and write it again with correct checksums."""
    folder = (run_dir / "checkpoints" / "last").resolve()
    manifest = json.loads((folder / "manifest.json").read_text())
    step = manifest["step"]
    held = [load_file(folder / f"stage-{n}.safetensors") for n in range(len(manifest["files"]))]
    shutil.rmtree(folder)
    saved = [checkpoint.save_stage(run_dir, step, n, change(each)) for n, each in enumerate(held)]
    epoch, cuts, metrics = (manifest[key] for key in ("epoch", "cuts", "metrics"))
    checkpoint.finish(run_dir, Manifest(step, epoch, tuple(cuts), metrics, tuple(saved)), keep=9)


def without(pattern: str) -> Change:
    return lambda held: {k: v for k, v in held.items() if not re.search(pattern, k)}


def cut_short(pattern: str) -> Change:
    return lambda held: {k: v[:1].clone() if re.search(pattern, k) else v for k, v in held.items()}


def refusal(result: Result) -> str:
    """Return the message with which a run refuses to resume, and check that no file changed."""
    before = {path: path.stat().st_mtime_ns for path in result.run_dir.rglob("*")}
    with pytest.raises(ConfigError) as caught:
        resumed(result, "max_steps=3")
    assert {path: path.stat().st_mtime_ns for path in result.run_dir.rglob("*")} == before
    message = str(caught.value)
    assert message.startswith(f"resume={result.run_dir}: it cannot be resumed")
    assert message.endswith("; start a new run")
    assert "\n" not in message
    return message


@pytest.mark.slow
def test_a_checkpoint_rewritten_without_change_can_be_resumed(run: Runner) -> None:
    """Other tests rewrite a checkpoint too. Their runs are not refused because of the rewriting."""
    result = run(*RESNET, "local=dgl")
    rewrite(result.run_dir, lambda held: held)
    assert resumed(result, "max_steps=3").summary["steps"] == 3


@pytest.mark.parametrize(
    ("method", "change", "reason"),
    [
        # Linear layers had no biases. They were narrower if the size of a map was no multiple of
        # four.
        ("dgl", without(r"^auxiliary\.0\.head\.\d+\.bias$"), "their pooling was corrected"),
        pytest.param(
            *("dgl", cut_short(r"^auxiliary\.0\..*weight$"), "their pooling was corrected"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "auglocal",
            cut_short(r"^auxiliary\.0\..*weight$"),
            "the choice of copied units was corrected",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_with_older_auxiliary_networks_is_refused_with_the_reason(
    run: Runner, method: str, change: Change, reason: str
) -> None:
    result = run(*RESNET, f"local={method}")
    rewrite(result.run_dir, change)
    message = refusal(result)
    assert "because this version's auxiliary networks differ" in message
    assert reason in message


@pytest.mark.slow
def test_a_run_of_an_older_edsr_is_refused_with_the_reason(run: Runner, tmp_path: Path) -> None:
    root = write_div2k(tmp_path / "root", 2)
    data = ["data=div2k", f"data.root={root}", f"data.cache={tmp_path / 'cache'}", "data.patch=8"]
    small = ["model=edsr", "model.depth=1", "model.width=4", "data.patches_per_epoch=16"]
    result = run(*small, *data, "schedule=bp", "gpus=1", "batch_size=4", "max_steps=2")
    rewrite(result.run_dir, without(r"\.levels$"))
    assert "this version's model differs: it now computes in [0, 255]" in refusal(result)


@pytest.mark.slow
def test_a_checkpoint_without_watched_weights_is_refused(run: Runner) -> None:
    result = run(*RESNET, "local=man")
    rewrite(result.run_dir, without(r"^watched\.layer3\.0\.1\.conv1\.weight$"))
    assert "it cannot be resumed: watched.layer3.0.1.conv1.weight is missing" in refusal(result)


def test_a_refusal_without_a_known_reason_names_the_tensor(run: Runner) -> None:
    result = run(*RESNET, "local=greedy")
    rewrite(result.run_dir, cut_short(r"^model\.stem\.conv1\.weight$"))
    assert (
        "it cannot be resumed: model.stem.conv1.weight has shape [1, 3, 3, 3] in its checkpoint, "
        "but this version needs shape [16, 3, 3, 3]"
    ) in refusal(result)


def test_a_checkpoint_with_a_tensor_that_the_networks_lack_is_refused(run: Runner) -> None:
    """The code of a model has lost a parameter since then. Without it the run would differ."""
    result = run(*RESNET, "local=greedy")
    rewrite(result.run_dir, lambda held: {**held, "model.stem.conv1.bias": torch.zeros(16)})
    assert (
        "it cannot be resumed: model.stem.conv1.bias has shape [16] in its checkpoint, "
        "but this version has no such tensor"
    ) in refusal(result)


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ('{"restarts": [{"stage": 1}, {"stage": 0}]}', [{"stage": 1}, {"stage": 0}]),
        ('{"status": "failed"}', []),
        ('{"restarts": {"stage": 1}}', []),
        ('{"restarts": ["stage", {"phase": "starting"}]}', []),
        ("[]", []),
        ("{", []),
        (None, []),
    ],
)
def test_restarts_of_stages_are_read_and_a_damaged_summary_has_none(
    tmp_path: Path, summary: str | None, expected: list[dict[str, object]]
) -> None:
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert beginning.restarts(tmp_path) == expected
