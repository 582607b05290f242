"""The files that a run writes, and unusual but valid configurations."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppll_cli.config import settings
from ppll_cli.config.targets import make
from ppll_cli.data.digits import Digits
from ppll_cli.errors import ConfigError
from ppll_cli.launch.run import Run
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.unit import ImageSpec
from ppll_cli.models.vit import ViT
from ppll_cli.observe.metrics import Metrics
from ppll_cli.tasks.classification import Classification
from ppll_cli.transport import memory
from tests.conftest import Runner, assert_same, compose_config, own_model, shared_memory
from tests.worker.inside import run_inside

DIGITS = ["data=digits", "model.dim=32", "model.depth=2", "model.heads=2", "model.patch=2"]
TINY = ["data=synthetic", "data.size=8", "data.train_samples=24", "data.test_samples=6"]
TINY += ["batch_size=6", "max_steps=5"]
VIT = ["model.dim=16", "model.depth=2", "model.heads=2"]


def digits_accuracy(model: torch.nn.Module) -> float:
    """Return the test accuracy on digits, computed without the program's training code."""
    config, _ = compose_config(["data=digits"])
    dataset: Digits = make("data", config["data"])
    test = dataset.load()["test"]
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    with torch.no_grad():
        logits = model((test.images.float() / 255 - mean) / std)
    return float((logits.argmax(dim=1) == test.labels).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["ppll", "1f1b"])
def test_the_model_file_loads_into_the_plain_model(run: Runner, schedule: str) -> None:
    """The file has no auxiliary networks, and its accuracy is the one that was reported."""
    result = run(f"schedule={schedule}", "gpus=3", "epochs=4", "batch_size=16", *DIGITS)
    vit = ViT(dim=32, depth=2, heads=2, patch=2)
    model = PlainModel(vit.units(ImageSpec(1, 8, 8), Classification(10))).eval()
    model.load_state_dict(load_file(result.run_dir / "model.safetensors"))
    assert result.summary["test"]["accuracy"] > 0.4
    assert digits_accuracy(model) == pytest.approx(result.summary["test"]["accuracy"], abs=1e-6)


def test_the_seed_determines_the_weights(tmp_path: Path) -> None:
    """`test_exactness.py` shows that workers in processes train the same as these threads."""
    small = [*TINY, *VIT]
    one, same, other = (run_inside(tmp_path, f"seed={seed}", *small) for seed in (1, 1, 2))
    assert_same(one.tensors, same.tensors)
    name = "model.embed.pos_embedding"
    assert not torch.equal(one.tensors[name], other.tensors[name])


@pytest.mark.slow
def test_a_stage_can_be_a_single_unit(run: Runner) -> None:
    result = run("gpus=5", "model.dim=16", "model.depth=3", "model.heads=2", *TINY)
    assert [stage["units"] for stage in result.summary["stages"]] == [
        ["embed"],
        ["blocks.0"],
        ["blocks.1"],
        ["blocks.2"],
        ["head"],
    ]


def test_val_fraction_makes_a_validation_split(run: Runner) -> None:
    result = run("data.val_fraction=0.25", "data.eval_limit=4", *TINY, *VIT)
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["split"] for line in lines} == {"train", "val", "test"}
    assert set(result.summary["val"]) == {"loss", "accuracy"}
    assert result.summary["val"]["accuracy"] in (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["ppll", "gpipe"])
def test_bfloat16_trains(run: Runner, schedule: str) -> None:
    common = [f"schedule={schedule}", "deterministic=true", *TINY, *VIT]
    result, full = run(*common, "precision=bf16"), run(*common)
    assert result.summary["train"]["loss"] == pytest.approx(full.summary["train"]["loss"], rel=0.1)
    assert result.summary["train"]["loss"] != full.summary["train"]["loss"]


def test_manual_cuts_make_the_stages(run: Runner) -> None:
    cuts = ["partition=manual", "partition.cuts=[blocks.0,head]", "gpus=3"]
    result = run(*cuts, "schedule=pp", *VIT, *TINY)
    names = [stage["units"] for stage in result.summary["stages"]]
    assert names == [["embed"], ["blocks.0", "blocks.1"], ["head"]]
    assert result.summary["modules"] == 1
    directions = [(edge["from"], edge["to"], edge["names"]) for edge in result.summary["edges"]]
    assert directions == [
        (0, 1, ["label", "x"]),
        (1, 0, ["x"]),
        (1, 2, ["label", "x"]),
        (2, 1, ["x"]),
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(),
    reason="Debian's dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_trains_from_its_read_only_folder(run: Runner) -> None:
    data = ["data=fashion_mnist", "data.root=/usr/share/datasets/fashion-mnist"]
    small = ["model=resnet32", "model.depth=8", "optim=sgd", "max_steps=20", "data.eval_limit=200"]
    result = run("schedule=ppll", "local=dgl", *data, *small)
    assert result.summary["train"]["loss"] < 2.2  # guessing: 2.3 for ten classes


def test_checkpoint_every_and_keep_are_obeyed(run: Runner) -> None:
    result = run("checkpoint.every=2", "checkpoint.keep=2", *TINY, *VIT)
    folder = result.run_dir / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last", "step-4", "step-5"]
    manifest = json.loads((folder / "last" / "manifest.json").read_text())
    assert (manifest["step"], len(manifest["files"])) == (5, 2)


@pytest.mark.parametrize("every", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_speed_is_measured_despite_frequent_checkpoints(run: Runner, every: int) -> None:
    """Batches right after a checkpoint are not measured.

    Once, these were all batches of such a run.
    """
    result = run(f"checkpoint.every={every}", "gpus=3", *TINY, *VIT)
    assert result.summary["train"]["samples_per_second"] > 0
    assert 0 <= result.summary["pipeline"]["bubble_fraction"] < 1


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["schedule=bp", "gpus=50"], marks=pytest.mark.slow),
        ["schedule=ppll", "schedule.microbatches=100"],
        pytest.param(["schedule=ll", "gpus=50", "local.modules=2"], marks=pytest.mark.slow),
        pytest.param(["schedule=gpipe", "gpus=1"], marks=pytest.mark.slow),
        pytest.param(["schedule=ppll", "gpus=1", "eval_every=100"], marks=pytest.mark.slow),
    ],
)
def test_settings_that_a_schedule_does_not_use_are_accepted(
    run: Runner, overrides: list[str]
) -> None:
    result = run(*overrides, *TINY, *VIT)
    assert result.summary["test"]["loss"] > 0


@pytest.mark.parametrize("schedule", [pytest.param("ppll", marks=pytest.mark.slow), "pp"])
def test_a_stage_may_have_nothing_to_train(run: Runner, schedule: str) -> None:
    """The first stage only flattens the images. The last one has a module without parameters."""
    result = run(f"schedule={schedule}", "gpus=3", *own_model("Idle"), *TINY)
    assert result.summary["status"] == "completed"
    assert result.summary["stages"][0]["units"] == ["flat"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ReadsLabel", "reads 'label', which no earlier unit writes"),
        ("Nested", "clashes with the unit name"),
    ],
)
def test_models_that_cannot_be_run_are_refused(run: Runner, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*own_model(name), *TINY)


def test_a_run_without_room_in_shared_memory_is_refused(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program checks the room before workers start.

    Otherwise the missing memory would kill a worker later.
    """
    shared_memory(monkeypatch, 1000)
    full = "transport=ring: its slots take 1 MiB, but /dev/shm has room for 0 MiB; enlarge /dev/shm"
    with pytest.raises(ConfigError, match=full):
        run(*TINY)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/shm")
@pytest.mark.parametrize(
    ("name", "why"), [("missing", "does not exist"), ("file", "cannot be written to")]
)
def test_a_run_without_shared_memory_is_refused(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, why: str
) -> None:
    """The run failed when it began, and the message spoke of its results and of continuing it."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(memory, "SHARED_MEMORY", tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name}: {why}, but a run's processes share memory"):
        run(*TINY, "schedule=bp")


@pytest.mark.slow
@pytest.mark.timeout(900)  # the C++ compiler is slow
def test_a_compiled_run_trains_like_an_uncompiled_one(run: Runner) -> None:
    """The last batch has another size."""
    case = [*TINY, "data.train_samples=16", "model.dim=16", "model.depth=1", "max_steps=6"]
    plain, compiled = run(*case), run(*case, "compile=true")
    assert compiled.summary["train"]["loss"] == pytest.approx(
        plain.summary["train"]["loss"], rel=1e-3
    )
    expected = plain.tensors()
    for name, tensor in compiled.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(run: Runner) -> None:
    case = [
        *DIGITS,
        "batch_size=256",
        "data.eval_limit=100",
        "epochs=6",
        "eval_every=1",
        "optim.lr=0.02",
    ]
    result = run(*case, "checkpoint.best=true", "checkpoint.keep=1", "checkpoint.every=1000")
    lines = [json.loads(x) for x in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    found = {
        line["step"]: line["accuracy"]
        for line in lines
        if line["split"] == "test" and line["module"] is None
    }
    assert len(found) == 6
    best = min(step for step in found if found[step] == max(found.values()))
    folder = result.run_dir / "checkpoints"
    assert (folder / "best").resolve().name == f"step-{best}"
    assert (folder / "best" / "manifest.json").exists()
    assert {path.name for path in folder.glob("step-*")} == {f"step-{best}", f"step-{max(found)}"}


@pytest.mark.parametrize("steps", [4, 5])
def test_speed_and_memory_are_measured_from_five_steps_on(run: Runner, steps: int) -> None:
    summary = run(*TINY, "schedule=gpipe", *VIT, f"max_steps={steps}").summary
    assert (summary["status"], summary["steps"]) == ("completed", steps)
    assert summary["test"]["loss"] > 0
    known = summary["train"]["samples_per_second"] is not None
    assert known == (steps >= 5)
    assert (summary["pipeline"]["bubble_fraction"] is not None) == known
    assert all((stage["peak_memory_bytes"] is not None) == known for stage in summary["stages"])


def test_times_in_the_metrics_file_are_those_of_the_workers(tmp_path: Path) -> None:
    """The program reads reports late, and may read all of one worker before those of another."""
    lines: list[dict[str, Any]] = []
    measured = {"kind": "metrics", "module": 0, "split": "train", "epoch": 1, "stage": 0}
    measured |= {"loss": 1.0, "samples": 1, "scores": {}, "seconds": 1.0}
    with Metrics(tmp_path / "metrics.jsonl", Classification(2), 2) as metrics:
        console, tracker = (SimpleNamespace(metrics=each) for each in (lines.append, id))
        run: Any = SimpleNamespace(metrics=metrics, console=console, tracker=tracker)
        run._started_s = 40.0
        for report in (
            {"kind": "ready", "at_s": 50.0},
            {**measured, "step": 1, "at_s": 53.0},
            {"kind": "ready", "at_s": 52.0},
            {**measured, "step": 2, "at_s": 60.5},
        ):
            Run._on_report(run, report)
    assert [line["seconds"] for line in lines] == [3.0, 8.5]
    assert run._started_s == 52.0


def test_a_failure_to_list_the_settings_does_not_fail_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown() -> list[str]:
        raise LookupError("no defaults are here")

    config, choices = compose_config([*TINY, *VIT, "device=cpu", "threads=1"])
    run = Run(settings.parse(config), config, choices, tmp_path, find_changes=unknown)
    assert run.execute()["status"] == "completed"
    assert "defaults could not be listed: LookupError: no defaults are here" in (caplog.text)
    assert run.objective == "test.accuracy"
    out = capsys.readouterr().out
    assert "output: " in out
    assert "settings: " not in out


def test_an_unknown_objective_is_refused_before_training(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective=test\.acc: test has no 'acc'; there are "):
        run(*TINY, "objective=test.acc")
    assert not list(tmp_path.glob("run-*/*"))


class NoDescriptors:
    """A transport that lacks a method."""

    def __init__(self, *, depth: int, ipc: bool, wire_dtype: str | None) -> None:
        self.depth, self.wire_dtype = depth, wire_dtype

    def obstacle(self, size: int, devices: Sequence[str]) -> None:
        """Say that nothing is in the way."""

    def channel(self, slots: int, size: int, source: str = "cpu", target: str = "cpu") -> None:
        """Never called."""


def test_a_transport_without_a_method_is_refused_before_the_start(run: Runner) -> None:
    """The run failed with an AttributeError, after its first checks."""
    path = f"{__name__}.NoDescriptors"
    with pytest.raises(ConfigError, match=f"^transport._target_={path}: .* no 'descriptors'"):
        run(f"transport._target_={path}", *TINY)
