"""`load_run` returns a finished run as an object."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file

import ppll_cli
from ppll_cli import load_run
from ppll_cli.errors import ConfigError
from ppll_cli.models.unit import IMAGE
from tests.conftest import own_model
from tests.finished import Finished, finished_run
from tests.launch.test_evaluation import DIGITS, photos, scenes
from tests.own_models import Idle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory.mktemp("digits") / "run", *DIGITS, "schedule=bp")


def test_load_run_returns_the_final_model(run: Finished) -> None:
    loaded = load_run(run.folder)
    assert loaded.step == run.step == 3
    assert loaded.classes == tuple("0123456789")
    assert not loaded.model.training
    saved = load_file(run.folder / "model.safetensors")
    assert all(torch.equal(saved[n], t) for n, t in loaded.model.state_dict().items())


def test_preprocess_prepares_a_picture_like_the_runs_batches(run: Finished) -> None:
    loaded = load_run(run.folder)
    splits, dataset = loaded.data.splits, loaded.data.dataset
    batches = dataset.batches(splits, 1, 0, torch.device("cpu"))
    for number in (0, 5):
        pixels = splits["test"].images[number, 0].numpy()  # type: ignore[attr-defined]
        expected = batches.evaluation("test", number, 1)[IMAGE]
        assert torch.equal(loaded.preprocess(Image.fromarray(pixels)), expected)
        colour = Image.fromarray(np.stack([pixels] * 3, axis=2))
        assert torch.equal(loaded.preprocess(colour), expected)
    large = Image.fromarray(pixels).resize((40, 30))
    assert loaded.preprocess(large).shape == (1, 1, 8, 8)


def test_a_picture_that_pillow_opened_counts_as_its_file(run: Finished, tmp_path: Path) -> None:
    """Such a picture was not turned upright, and 16-bit levels above 255 became white."""
    loaded, file = load_run(run.folder), tmp_path / "picture.png"
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for made, exif in (
        (Image.fromarray(levels), turned),
        (Image.fromarray(levels.astype(np.uint16) * 256), None),
    ):
        made.save(file, exif=exif)
        with Image.open(file) as opened:
            assert torch.equal(loaded.preprocess(opened), loaded.preprocess(file))
    floats = Image.fromarray(levels.astype(np.float32))
    with pytest.raises(ConfigError, match=r"cannot be used .its grey values are floating-point"):
        loaded.preprocess(floats)


def test_classification_predicts_the_probability_of_each_class(
    run: Finished, tmp_path: Path
) -> None:
    loaded = load_run(run.folder)
    file = tmp_path / "grey.png"
    Image.new("L", (8, 8), 90).save(file)
    found, picture = loaded.predict(file)
    assert picture is None
    sure = [each["probability"] for each in found["probabilities"]]
    assert sum(sure) == pytest.approx(1, abs=1e-5)
    assert sure == sorted(sure, reverse=True)
    logits = loaded.model(loaded.preprocess(file))
    assert isinstance(logits, torch.Tensor)
    assert found["label"] == int(logits.argmax())
    assert found["class"] == loaded.classes[found["label"]]


def test_detection_predicts_boxes_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = finished_run(tmp_path / "run", *scenes(tmp_path), "schedule=bp")
    loaded = load_run(run.folder)
    assert loaded.classes[0] == "t-shirt"
    scene = loaded.data.splits["test"][0]  # type: ignore[index]
    found, picture = loaded.predict(Image.fromarray(scene.pixels))
    batches = loaded.data.dataset.batches(loaded.data.splits, 1, 0, torch.device("cpu"))
    values = batches.evaluation("test", 0, 1)
    (expected,) = loaded.task.detections(  # type: ignore[attr-defined]
        loaded.apply(values[IMAGE]), values["frame"]
    )
    assert [each["box"] for each in found["boxes"]] == expected.boxes.tolist()
    assert [each["score"] for each in found["boxes"]] == expected.scores.tolist()
    assert picture is not None
    assert picture.width >= 640


def test_enlarging_by_tiles_equals_enlarging_the_whole_picture(tmp_path: Path) -> None:
    """Each pixel is the same as if the whole picture were enlarged at once."""
    run = finished_run(tmp_path / "run", *photos(tmp_path), "schedule=bp")
    loaded = load_run(run.folder)
    assert loaded.classes == ()
    file = tmp_path / "photos" / "1.png"
    with Image.open(file) as small:
        size = small.size
    found, picture = loaded.predict(file)
    assert picture is not None
    assert picture.size == (2 * size[0], 2 * size[1]) == (found["width"], found["height"])
    whole = loaded.apply(loaded.preprocess(file))[0].clamp(0, 1)
    expected = (whole * 255).round().byte().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


def test_a_users_own_model_must_be_passed_to_load_run(tmp_path: Path) -> None:
    own = own_model("Idle")
    run = finished_run(tmp_path / "run", "data=digits", *own, "schedule=bp", "max_steps=1")
    with pytest.raises(
        ConfigError, match=r"model._target_=tests.own_models.Idle: the run directory"
    ):
        load_run(run.folder)
    for named in (Idle, "tests.own_models.Idle"):
        assert load_run(run.folder, classes=[named]).step == 1


def test_a_copied_model_needs_no_checkpoints(run: Finished, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    loaded = load_run(tmp_path)
    assert loaded.step is None
    image = torch.zeros(1, 1, 8, 8)
    assert torch.equal(loaded.apply(image), load_run(run.folder).apply(image))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "checkpoint=best: the run has no such checkpoint; there are last, 3"),
        (7, "checkpoint=7: the run has no such checkpoint"),
        ("../run", "checkpoint=../run: the run has no such checkpoint"),
    ],
)
def test_a_missing_checkpoint_is_refused(run: Finished, name: str | int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run(run.folder, checkpoint=name)
    assert load_run(run.folder, checkpoint=3).step == 3


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", *DIGITS, "schedule=bp")
    file = run.folder / "checkpoints" / "step-3" / "stage-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="checkpoint=last: cannot be used: stage-0"):
        load_run(run.folder)


def test_weights_of_another_model_are_refused(run: Finished, tmp_path: Path) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    config["model"]["dim"], config["format"] = 32, 1
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((run.folder / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="this version builds the run's model differently"):
        load_run(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^RUN_DIR=.*: there is no such folder"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match=r"^RUN_DIR=.*: it holds no config\.json"):
        load_run(tmp_path)


def test_the_package_exports_load_run() -> None:
    assert "load_run" in ppll_cli.__all__
