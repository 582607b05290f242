"""`weights=`: the tensors of a file that a run takes."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from ppll_cli.errors import ConfigError
from ppll_cli.models.plain import PlainModel
from tests.conftest import prepared
from tests.data.scene_files import write_fashion

TINY = ["data=digits", "model.dim=16", "model.depth=2", "model.heads=2", "schedule=bp"]


def tiny_model(seed: int = 5) -> dict[str, Tensor]:
    """Return weights of the tiny model. Their seed is not that of the run."""
    return PlainModel(prepared(*TINY).job.units(), seed).state_dict()


def saved(folder: Path, tensors: dict[str, Tensor], name: str = "w.safetensors") -> Path:
    file = folder / name
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def test_all_tensors_of_a_fitting_file_are_taken(tmp_path: Path) -> None:
    tensors = tiny_model()
    file = saved(tmp_path, tensors)
    found = prepared(*TINY, f"weights={file}")
    assert found.job.weights is not None
    assert found.job.weights.file == file
    assert found.job.weights.names == {name: name for name in tensors}
    assert found.weights == {
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "taken": len(tensors),
        "missing": [],
        "unfit": [],
        "unused": [],
    }
    count = len(tensors)
    assert f"weights={file}: {count} of the model's {count} tensors fit" in found.notes
    assert prepared(*TINY).weights is None


def test_a_relative_run_directory_is_found_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    saved(tmp_path / "run", tiny_model(), "model.safetensors")
    monkeypatch.chdir(tmp_path)
    found = prepared(*TINY, "weights=run").job.weights
    assert found is not None
    assert found.file == tmp_path / "run" / "model.safetensors"


def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors: one is missing, one has another shape, and one has an unknown name."""
    return {
        **{name: tensor for name, tensor in tensors.items() if name != "embed.class_token"},
        "head.fc.bias": torch.zeros(1000),
        "extra": torch.zeros(1),
    }


def test_tensors_that_do_not_fit_are_listed_and_refused_by_default(tmp_path: Path) -> None:
    tensors = tiny_model()
    file = saved(tmp_path, changed(tensors))
    told = (
        f"{len(tensors) - 2} of the model's {len(tensors)} tensors fit, "
        "1 missing (embed.class_token), "
        "1 of another form (head.fc.bias is [1000] in the file, but [10] in the model), "
        "1 not used (extra)"
    )
    with pytest.raises(ConfigError) as caught:
        prepared(*TINY, f"weights={file}")
    assert f"does not fit the model: {told}; weights_partial=true" in str(caught.value)
    found = prepared(*TINY, f"weights={file}", "weights_partial=true")
    assert f"weights={file}: {told}" in found.notes
    assert found.weights is not None
    assert found.weights["missing"] == ["embed.class_token"]
    assert found.weights["unused"] == ["extra"]
    assert found.job.weights is not None
    assert "head.fc.bias" not in found.job.weights.names


def test_integers_are_no_weights(tmp_path: Path) -> None:
    """Truncated or quantised weights were taken as if their integers were the weights."""
    tensors = tiny_model()
    file = saved(tmp_path, tensors | {"head.fc.bias": tensors["head.fc.bias"].to(torch.int8)})
    told = r"1 of another form \(head\.fc\.bias is torch\.int8 \[10\] in the file, but \[10\] in"
    with pytest.raises(ConfigError, match=told):
        prepared(*TINY, f"weights={file}")


def test_weights_may_have_another_precision(tmp_path: Path) -> None:
    file = saved(tmp_path, {name: tensor.half() for name, tensor in tiny_model().items()})
    assert prepared(*TINY, f"weights={file}").job.weights is not None


@pytest.mark.parametrize(
    "old",
    [pytest.param(False, id="zip", marks=pytest.mark.slow), pytest.param(True, id="before 2020")],
)
def test_torchvisions_file_fits_the_same_model(tmp_path: Path, old: bool) -> None:
    """Files from before BatchNorm counted batches lack these counters, which then begin at 0."""
    theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    if old:
        theirs = {name: t for name, t in theirs.items() if "num_batches_tracked" not in name}
    torch.save(theirs, tmp_path / "r.pth", _use_new_zipfile_serialization=not old)
    case = ["data=synthetic", "data.size=64", "model=resnet18", "model.stem=imagenet"]
    found = prepared(*case, f"weights={tmp_path / 'r.pth'}", "schedule=bp")
    assert found.weights is not None
    assert found.weights["taken"] == len(theirs)
    assert found.weights["missing"] == found.weights["unused"] == []
    assert found.job.weights is not None
    assert found.job.weights.names["stem.conv1.weight"] == "conv1.weight"


@pytest.mark.slow
def test_a_detector_can_begin_with_torchvisions_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "r.pth")
    case = ["model=retinanet", "model.width=8", "data=fashion_scenes", "schedule=bp"]
    case += [f"data.root={write_fashion(tmp_path / 'root')}", "batch_size=2"]
    case += ["data.pictures=2", "data.test_pictures=1", f"weights={tmp_path / 'r.pth'}"]
    with pytest.raises(ConfigError, match="weights_partial=true uses what fits"):
        prepared(*case)
    found = prepared(*case, "weights_partial=true").weights
    assert found is not None
    assert found["taken"] == len(theirs) - 2
    assert found["unused"] == ["fc.weight", "fc.bias"]
    assert {name.split(".")[0] for name in found["missing"]} == {"head"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weights=nowhere.pth", "weights=nowhere.pth: there is no such file"),
        ("weights=empty", "weights=empty: that folder holds no model.safetensors"),
        ("weights=text.safetensors", "weights=text.safetensors: cannot be read"),
        ("weights=text.pth", "weights=text.pth: cannot be read"),
        ("weights=list.pth", "weights=list.pth: cannot be read: it is not a dictionary of tensors"),
        ("weights=code.pth", "weights=code.pth: cannot be read"),
        ("weights=''", "weights='': is empty"),
        ("weights_partial=true", "weights_partial=true: applies only with weights=FILE_OR_RUN_DIR"),
        ("weights=3", "weights=3: must be a valid string"),
    ],
)
def test_wrong_weights_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("text.safetensors", "text.pth"):
        (tmp_path / name).write_text("no weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"a": Path("/tmp")}, tmp_path / "code.pth")  # reading it would execute code
    with pytest.raises(ConfigError) as caught:
        prepared(*TINY, given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused_even_if_partial(tmp_path: Path) -> None:
    file = saved(tmp_path, {"other.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match="nothing in it fits the model"):
        prepared(*TINY, f"weights={file}", "weights_partial=true")
