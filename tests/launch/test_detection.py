"""Detection: equal results have the same bits.

`worker/test_pipelines.py` has more of these tests.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ppll_cli.errors import ConfigError
from tests.conftest import Runner, assert_same, own_model, prepared, resumed
from tests.data.scene_files import write_fashion
from tests.worker.inside import Outcome, run_inside

RETINANET = own_model("own_detector.NarrowRetinaNet", width=8)
COURSE = ["batch_size=4", "epochs=1", "eval_every=1", "max_steps=3"]  # batches of 4, 4 and 2 scenes
TARGETS = ["boxes", "count", "frame", "ignored", "labels", "number"]
CUTS = "local.cuts=[layer2.1,layer3.1,layer4.1]"  # the bank gets maps of stride 8, 16 and 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Return overrides for small scenes, which are painted once."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield [
            "data=fashion_scenes",
            f"data.root={write_fashion(folder / 'root')}",
            "data.pictures=10",
            "data.test_pictures=3",
            "data.side=64",
            "data.short_side=64",
            "data.long_side=64",
        ]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bank"), [("local=greedy", []), ("fba=on", ["bank.0"])])
def test_ppll_is_sequential_local_learning(
    tmp_path: Path, data: list[str], method: str, bank: list[str]
) -> None:
    """The first cut between stages is behind stride 8.

    A module behind the cut reads its banked map.
    """
    case = [*RETINANET, *COURSE, *data, method, CUTS]
    stages = ["gpus=2", "partition=manual", "partition.cuts=[layer3.1]"]
    found = compare(tmp_path, "schedule=ll", ["schedule=ppll", *stages], case)
    banked = [*bank, *(["bank.1"] if bank else [])]
    assert found.job.crossing() == {(0, 1): {*TARGETS, "c3", "x", *banked}}


def compare(folder: Path, same: str, shape: list[str], case: list[str]) -> Outcome:
    """Train twice, and check that both have the same results. Return those of the second run."""
    expected = run_inside(folder / "expected", same, *case)
    found = run_inside(folder / "found", *shape, *case)
    assert_same(found.tensors, expected.tensors)
    assert found.test == expected.test
    return found


@pytest.mark.slow
def test_stages_may_group_modules_in_any_way(tmp_path: Path, data: list[str]) -> None:
    case = [*RETINANET, *COURSE, *data, "fba=on", "fba.fusion=add", CUTS, "partition=flops"]
    compare(tmp_path, "schedule=ll", ["schedule=ppll", "gpus=4"], case)


ALWAYS = [
    ("local=auglocal", "pyramid", 2),
    ("local=manpp", "level", 10),
]
"""Methods, heads and numbers of modules that are always tested. All others are slow tests."""

LEVEL = {
    "greedy": ["local=greedy", "local.detection_head=level"],
    "bank": ["fba=on", "local.detection_head=level"],
    "manpp": ["local=manpp"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bank", "greedy", "manpp"])
def test_ll_and_ppll_train_level_heads_the_same(
    tmp_path: Path, data: list[str], method: str
) -> None:
    """Each module has anchors only for its own levels, also when it is evaluated."""
    case = [*RETINANET, *COURSE, *data, *LEVEL[method], CUTS, "partition=flops"]
    compare(tmp_path, "schedule=ll", ["schedule=ppll", "gpus=3"], case)


@pytest.mark.slow
def test_ll_and_ppll_train_level_heads_the_same_with_replicas(
    tmp_path: Path, data: list[str]
) -> None:
    case = [*RETINANET, *COURSE, *data, *LEVEL["bank"], CUTS, "replicas=2"]
    compare(tmp_path, "schedule=ll", ["schedule=ppll", "gpus=4"], case)


def test_level_heads_cost_less_than_pyramids(data: list[str]) -> None:
    """Level heads have no copies of later stages, and one level instead of five."""
    real = ["model=retinanet", "model.width=8"]
    case = [*real, *data, "batch_size=4", "schedule=ll", CUTS, "local=fba"]
    costs = {
        head: prepared(*case, f"local.detection_head={head}").auxiliary_costs
        for head in ("pyramid", "level")
    }
    for pyramid, level in zip(costs["pyramid"][:3], costs["level"], strict=False):
        assert level.flops < pyramid.flops / 4
        assert level.params < pyramid.params
    assert costs["pyramid"][3] == costs["level"][3]


@pytest.mark.slow
def test_ppll_is_sequential_local_learning_with_replicas(tmp_path: Path, data: list[str]) -> None:
    """The replicas have different numbers of boxes. Each has one scene of the last batch."""
    case = [*RETINANET, *COURSE, *data, "replicas=2", "local.modules=2"]
    found = compare(tmp_path, "schedule=ll", ["schedule=ppll", "gpus=4"], case)
    assert found.job.replicas == 2


@pytest.mark.slow
def test_the_gradients_of_skips_travel_back(tmp_path: Path, data: list[str]) -> None:
    """The next unit and the head both read c3 and c4.

    One backward call gets the gradients of both.
    """
    case = [*RETINANET, *COURSE, *data, "optim.clip_norm=0.5"]
    cuts = ["partition=manual", "partition.cuts=[layer3.0,layer4.1]"]
    found = compare(tmp_path, "schedule=bp", ["schedule=pp", "gpus=3", *cuts], case)
    back = {pair: names for pair, names in found.job.crossing().items() if pair[0] > pair[1]}
    assert back == {(1, 0): {"c3"}, (2, 1): {"c3", "c4", "x"}}


@pytest.mark.slow
def test_a_resumed_run_with_processes_trains_the_same(
    run: Runner, tmp_path: Path, data: list[str]
) -> None:
    case = ["fba=on", CUTS, *RETINANET, *COURSE, *data]
    whole = run_inside(tmp_path / "whole", "schedule=ppll", "gpus=2", *case)
    stopped = run("schedule=ppll", "gpus=2", *case, "max_steps=1")
    continued = resumed(stopped, RETINANET[0], "max_steps=3", "gpus=3")
    assert_same(continued.tensors(), whole.tensors)


def test_a_run_reports_detection_metrics_and_writes_sample_pictures(
    run: Runner, data: list[str]
) -> None:
    """Each module has the metrics of COCO and VOC. In training, only the loss is reported."""
    modules = ["schedule=ll", "local.modules=2", "max_steps=2", "batch_size=4"]
    result = run(*modules, *RETINANET, *data)
    names = ["loss", "ap", "ap50", "ap75", "voc_ap50", "voc07_ap50"]
    assert list(result.test) == names
    for module in result.summary["per_module"]:
        assert list(module["test"]) == names
    lines = [json.loads(t) for t in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if line["split"] == "train")
    assert "ap" not in trained
    pictures = sorted((result.run_dir / "samples").iterdir())
    assert len(pictures) == 3
    with Image.open(pictures[0]) as picture:
        assert min(picture.size) >= 64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(
            *(["local=predsim"], "local=predsim: is for classification"), marks=pytest.mark.slow
        ),
        (["local=infopro"], "local=infopro: is for classification"),
        pytest.param(*(["local=dgl"], "local=dgl: is for classification"), marks=pytest.mark.slow),
        (["local=vit_blocks"], r"local=vit_blocks: needs tokens \[T, D\]"),
        (
            ["fba=on", "fba.shared_head=false"],
            r"fba.shared_head=false: does not apply to detection",
        ),
        (["local=manpp", "local.loss=ce"], "local.loss=ce: is for classification"),
        (["model=resnet18"], "model=resnet18: is for classification"),
        (["model=edsr"], "model=edsr: is for super-resolution"),
    ],
)
def test_settings_that_do_not_apply_to_detection_are_refused(
    data: list[str], overrides: list[str], message: str
) -> None:
    model = [] if overrides[0].startswith("model") else RETINANET
    with pytest.raises(ConfigError, match=message):
        prepared(*model, *data, "gpus=2", "batch_size=4", *overrides)


@pytest.mark.parametrize(
    ("method", "head", "modules"),
    [
        pytest.param(m, h, k, marks=[pytest.mark.slow] * ((m, h, k) not in ALWAYS))
        for m in ("local=greedy", "local=fba", "fba=on", "local=auglocal", "local=manpp")
        for h in ("pyramid", "level")
        for k in (2, 10)
    ],
)
def test_a_detector_can_have_any_number_of_modules(
    data: list[str], method: str, head: str, modules: int
) -> None:
    case = [method, f"local.detection_head={head}", f"local.modules={modules}"]
    job = prepared(*RETINANET, *data, "gpus=2", "batch_size=4", *case).job
    assert len(job.layout.modules) == modules
