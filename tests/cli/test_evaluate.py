"""ppll-eval as a user sees it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ppll_cli import load_run
from tests.conftest import own_model
from tests.data.class_pictures import write_classes
from tests.data.scene_files import write_fashion
from tests.finished import Finished, finished_run
from tests.launch.test_evaluation import DIGITS, photos, scenes
from tests.program import Call, imported, ppll_eval

SYNTHETIC = ["data=synthetic", "data.size=8", "data.channels=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("digits") / "run"
    return finished_run(folder, *DIGITS, "schedule=ppll", "gpus=2", "local.modules=2")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_evaluating_a_run_repeats_its_test_result(run: Finished) -> None:
    done = ppll_eval(run.folder)
    assert done.returncode == 0
    head, *rows, numbers, last = done.stdout.splitlines()
    assert head.split() == ["class", "samples", "accuracy"]
    assert len(rows) == 10
    accuracy = f"{run.test['accuracy']:.4f}"
    loss = f"{run.test['loss']:.4f}"
    expected = f"after step 3, 360 samples of digits: loss {loss}, accuracy {accuracy}"
    assert numbers == expected
    assert last == f"test accuracy {accuracy} in {run.folder / 'evaluation'}"
    found = results(run.folder / "evaluation")
    assert found["test"] == run.test
    assert (found["split"], found["step"], found["samples"]) == ("test", 3, 360)
    assert [len(row) for row in found["confusion"]] == [10] * 10
    with Image.open(run.folder / "evaluation" / "confusion.png") as picture:
        assert picture.width > 800


def test_a_run_can_be_evaluated_on_other_data(run: Finished, tmp_path: Path) -> None:
    """The data are normalised like the run's data, unless the command line gives a key."""
    synthetic = [*SYNTHETIC, "data.train_samples=8", "data.test_samples=20"]
    out = ["--output", str(tmp_path / "out")]
    assert ppll_eval(run.folder, *synthetic, *out).returncode == 0
    kept = results(tmp_path / "out")
    assert (kept["data"], kept["samples"]) == ("synthetic", 20)
    config = json.loads((run.folder / "config.json").read_text())
    same = [*synthetic, f"data.mean={config['data']['mean']}", f"data.std={config['data']['std']}"]
    assert ppll_eval(run.folder, *same, *out).returncode == 0
    assert results(tmp_path / "out")["test"] == kept["test"]
    assert ppll_eval(run.folder, *synthetic, "data.mean=[0.9]", *out).returncode == 0
    assert results(tmp_path / "out")["test"] != kept["test"]


def test_averaged_weights_are_named_as_in_the_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", *DIGITS, "schedule=bp", "optim.ema=0.9")
    done = ppll_eval(run.folder, "--ema")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("test_ema accuracy ")


def test_own_pictures_get_the_runs_size_and_class_names(tmp_path: Path) -> None:
    for root, names in (("one", "ab"), ("other", "ax")):
        for part in ("train", "test"):
            write_classes(tmp_path / root / part, {name: [10, 200] for name in names})
    model = ["model=resnet32", "model.depth=8", "batch_size=4", "max_steps=1", "data.size=16"]
    folders = [f"data.root={tmp_path / root}" for root in ("one", "other")]
    run = finished_run(tmp_path / "run", "data=imagefolder", folders[0], *model)
    done = ppll_eval(run.folder)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["a", "b"]
    assert load_run(run.folder).classes == ("a", "b")
    done = ppll_eval(run.folder, "data=imagefolder", folders[1])
    assert done.returncode == 0
    assert "names" in done.stdout + done.stderr
    size = json.loads((run.folder / "config.json").read_text())["data"]["size"]
    tiny = ["data=imagefolder", folders[0]]
    assert size == 16
    assert ppll_eval(run.folder, *tiny, "--output", tmp_path / "again").returncode == 0
    assert results(tmp_path / "again")["test"] == pytest.approx(run.test)


def test_predict_prints_a_prediction_for_each_picture(run: Finished, tmp_path: Path) -> None:
    """With --predict, no split is evaluated unless --split asks for it."""
    Image.new("L", (8, 8), 40).save(tmp_path / "a.png")
    Image.new("RGB", (20, 30)).save(tmp_path / "b.jpg")
    files = ["--predict", "a.png", "b.jpg"]
    older = tmp_path / "out" / "confusion.png"
    older.parent.mkdir()
    older.write_text("of an earlier evaluation")
    done = ppll_eval(run.folder, *files, "device=cpu", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0
    one, two, last = done.stdout.splitlines()
    assert one.startswith("a.png: ")
    assert two.startswith("b.jpg: ")
    assert last == "predictions in out"
    found = results(tmp_path / "out")
    assert "test" not in found
    assert not older.exists()  # it would look like a result of this evaluation
    assert [each["file"] for each in found["predictions"]] == ["a.png", "b.jpg"]
    first = found["predictions"][0]
    assert one.split()[1:3] == [first["class"], f"{first['probability']:.4f},"]
    done = ppll_eval(run.folder, *files, "--split=test", "--output=out", cwd=tmp_path)
    assert done.returncode == 0
    assert results(tmp_path / "out")["test"] == run.test


@pytest.mark.parametrize("case", [pytest.param(scenes, marks=pytest.mark.slow), photos])
def test_boxes_and_enlarged_pictures_are_written(
    tmp_path: Path, case: Callable[[Path], list[str]]
) -> None:
    """`launch/test_loaded.py` has a faster test of boxes."""
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "a.png")
    run = finished_run(tmp_path / "run", *case(tmp_path), "schedule=bp")
    done = ppll_eval(run.folder, "--split=test", "--predict", str(tmp_path / "a.png"))
    assert done.returncode == 0
    found = results(run.folder / "evaluation")
    assert found["test"] == run.test
    (each,) = found["predictions"]
    with Image.open(run.folder / "evaluation" / each["picture"]) as picture:
        assert picture.size == (100, 80) if case is photos else picture.width >= 640
    assert each["picture"] in done.stdout


def test_a_users_class_must_be_named_again(tmp_path: Path) -> None:
    own = own_model("Idle")
    run = finished_run(tmp_path / "run", "data=digits", *own, "schedule=bp", "max_steps=1")
    done = ppll_eval(run.folder)
    assert done.returncode == 2
    said = done.stderr
    assert said.startswith("ppll-eval: model._target_=tests.own_models.Idle: the run directory")
    assert ppll_eval(run.folder, "model._target_=tests.own_models.Idle").returncode == 0


def test_different_class_names_are_reported(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", *DIGITS, "schedule=bp", "data.eval_limit=20")
    config = json.loads((run.folder / "config.json").read_text())
    assert config["classes"] == list("0123456789")
    config["classes"][3], config["format"] = "three", 1
    del config["sha256"]
    (run.folder / "config.json").write_text(json.dumps(config))
    done = ppll_eval(run.folder)
    assert done.returncode == 0
    first = done.stdout.splitlines()[0]
    assert first == "digits: class names differ from those in the run: '3' instead of 'three'"


def test_a_users_option_is_found_in_its_config_dir(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path / "run", "data=digits", *own_model("Idle"), "schedule=bp", "max_steps=1"
    )
    config = json.loads((run.folder / "config.json").read_text())
    config["choices"]["model"], config["format"] = "idle", 1
    del config["sha256"]
    (run.folder / "config.json").write_text(json.dumps(config))
    own = tmp_path / "conf, mine"  # Hydra's grammar would read this name as two words
    (own / "model").mkdir(parents=True)
    (own / "model" / "idle.yaml").write_text("_target_: tests.own_models.Idle\n")
    done = ppll_eval(run.folder)
    assert done.returncode == 2
    assert "model=idle: there is no such option" in done.stderr
    assert ppll_eval(run.folder, "--config-dir", own).returncode == 0


def test_a_held_out_part_matters_only_for_splits_made_from_it(
    run: Finished, tmp_path: Path
) -> None:
    more, out = "data.val_fraction=0.2", ["--output", str(tmp_path / "out")]
    assert ppll_eval(run.folder, more, *out).returncode == 0
    assert results(tmp_path / "out")["test"] == run.test
    assert ppll_eval(run.folder, "--split=train", more, *out).returncode == 0
    assert results(tmp_path / "out")["samples"] == 1437 - 287
    Image.new("L", (8, 8), 40).save(tmp_path / "a.png")
    assert ppll_eval(run.folder, more, *out, "--predict", tmp_path / "a.png").returncode == 0


def test_a_held_out_test_set_must_not_be_larger_than_the_runs(tmp_path: Path) -> None:
    """The folder has no test set, so the run was trained on the pictures that it did not test."""
    write_classes(tmp_path / "root" / "train", {name: range(0, 250, 25) for name in "ab"})
    data = ["data=imagefolder", f"data.root={tmp_path / 'root'}", "data.size=16"]
    small = ["model=resnet32", "model.depth=8", "batch_size=4", "max_steps=1"]
    run = finished_run(tmp_path / "run", *data, "data.val_fraction=0.2", *small)
    for fraction in (0.2, 0.1):
        assert ppll_eval(run.folder, f"data.val_fraction={fraction}").returncode == 0
        assert results(run.folder / "evaluation")["samples"] == 20 * fraction
    done = ppll_eval(run.folder, "data.val_fraction=0.4")
    assert done.returncode == 2
    said = done.stderr
    assert "the run held out 0.2, so it was trained on some of these samples" in said
    assert said.endswith("; give at most 0.2, or evaluate on other data\n")
    assert ppll_eval(run.folder, "data.val_fraction=0.4", "--split=train").returncode == 0

    Image.new("RGB", (16, 16)).save(tmp_path / "root" / "train" / "b" / "new.png")
    done = ppll_eval(run.folder, "data.loaders=0")
    assert done.returncode == 2
    said = done.stderr
    assert "these are not the data that the run was started with: b in train has changed" in said
    assert said.endswith("or evaluate another split or other data\n")
    assert ppll_eval(run.folder, "--split=train").returncode == 0


def test_training_pictures_are_no_test_set(tmp_path: Path) -> None:
    """The last pictures of the folder are the test set, so a new one makes others the last ones.

    In the same way, the test set of VOC 2012 is a part of the training set of VOC 07+12.
    """
    run = finished_run(tmp_path / "run", *photos(tmp_path), "data.eval_limit=null", "schedule=bp")
    folder = tmp_path / "photos"
    last = max(folder.glob("*.png"))
    last.rename(tmp_path / last.name)
    done = ppll_eval(run.folder)
    assert done.returncode == 2
    said = done.stderr
    assert "--split=test: the run was trained on 1 of these pictures, such as" in said
    (tmp_path / last.name).rename(last)
    assert ppll_eval(run.folder).returncode == 0


WRONG_TOO: list[tuple[list[str], str]] = [
    (["RUN", "optim.lr=3"], "optim.lr=3: the run was started with 0.002; keep that value"),
    (["RUN", "model=resnet32"], "model=resnet32: the run was started with vit"),
    (["RUN", "hydra/launcher=basic"], "hydra/launcher=basic: is only for ppll-run"),
    (["RUN", "resume=x"], "resume=x: is only for ppll-run"),
    (["RUN", "data.mean=1"], "data.mean=1: must be a valid list"),
    (["RUN", "device=tpu"], "device=tpu: must be"),
    (["RUN", *SYNTHETIC, "data.classes=4"], "data=synthetic: its images or classes"),
    (["RUN", "--split=dev"], "arguments="),
    (["RUN", "--nonsense"], "arguments="),
]
"""Slow cases: what is refused by the same checks as other arguments below."""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in WRONG_TOO),
        (
            ["RUN", "seed=4"],
            "seed=4: the run was started with 0; keep that value, or start a new run; "
            "an evaluation may change batch_size, data,",
        ),
        (["RUN", "~data.mean"], "arguments="),
        (["RUN", "hydra.run.dir=x"], "hydra.run.dir=x: is only for ppll-run; ppll-eval takes"),
        (["RUN", "nonsense=1"], "nonsense=1: there is no such key"),
        (["RUN", "data=nonsense"], "data=nonsense: there is no such option"),
        (
            ["RUN", "--split=val", "data.val_fraction=0.2"],
            "data.val_fraction=0.2: the run held out 0, so it was trained on some of these "
            "samples; evaluate another split or other data",
        ),
        (["RUN", "batch_size=0"], "batch_size=0: must be greater than or equal to 1"),
        (["RUN", "data=cifar10", "data.root=."], "data.root=/"),
        (["RUN", "data=synthetic"], "data=synthetic: its images or classes do not fit"),
        (["RUN", "data=fashion_scenes"], "data=fashion_scenes: does not fit the run's model"),
        (["RUN", "--checkpoint=best"], "checkpoint=best: the run has no such checkpoint"),
        (["RUN", "--checkpoint=x"], "checkpoint=x: the run has no such checkpoint; there are "),
        (["RUN", "--split=val"], "--split=val: the data set has no such split"),
        (["RUN", "--predict", "no.png"], "--predict=no.png: there is no such file"),
        (["RUN", "--predict", "empty"], "--predict=empty: is not a file; give pictures, such as"),
        (["RUN", "--predict", "text.png"], "--predict=text.png: cannot be read as a picture"),
        (["RUN", "--output", "text.png"], "--output=text.png: cannot be written to"),
        (["RUN", "--split=val", "--output", "/proc"], "--output=/proc: cannot be written to"),
        (["RUN", "--config-dir", "no"], "arguments="),
        (["nowhere"], "RUN_DIR=nowhere: there is no such folder"),
        (["empty"], "RUN_DIR=empty: it holds no config.json of a run"),
        ([], "arguments=: the following arguments are required: RUN_DIR"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    run: Finished, tmp_path: Path, arguments: list[str], line: str
) -> None:
    if "data=fashion_scenes" in arguments:
        root = write_fashion(tmp_path / "root")
        arguments = [*arguments, f"data.root={root}", "data.pictures=2", "data.test_pictures=1"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    given = [str(run.folder) if each == "RUN" else each for each in arguments]
    done = ppll_eval(*given, cwd=tmp_path)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"ppll-eval: {line}")


def test_help_and_refusals_do_not_import_torch(run: Finished, tmp_path: Path) -> None:
    folder = str(run.folder)
    expected: list[Call] = [
        (["--help"], 0, []),
        ([folder, "seed=4"], 2, []),
        ([folder, "data.pad=x"], 2, []),
    ]
    calls = [call for call, *_ in expected]
    assert imported("ppll_cli.cli.evaluate", ["torch"], calls, tmp_path) == expected
