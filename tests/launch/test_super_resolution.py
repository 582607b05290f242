"""Super-resolution: equal results have the same bits. `worker/test_pipelines.py` has more tests."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ppll_cli.config import settings
from ppll_cli.errors import ConfigError
from ppll_cli.launch import beginning
from ppll_cli.launch.facts import facts
from ppll_cli.launch.resume import recorded_in
from ppll_cli.prepare.preparation import prepare
from tests.conftest import Runner, assert_same, assert_same_run, compose_config, prepared, resumed
from tests.data.picture_files import write_photos
from tests.program import ppll_plan
from tests.worker.inside import run_inside

EDSR = ["model=edsr", "model.depth=3", "model.width=4"]
COURSE = ["batch_size=4", "epochs=2", "eval_every=1", "max_steps=5"]  # batches of 4, 4 and 2


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Return overrides for small pictures, each of which is divided into several tiles."""
    folder = write_photos(tmp_path / "photos", width=72, height=64)
    return [
        "data=photos",
        f"data.folders=[{folder}]",
        f"data.cache={tmp_path / 'cache'}",
        "data.patch=8",
        "data.patches_per_epoch=10",
        "data.tile=31",
        "data.overlap=13",
        "data.eval_limit=2",
    ]


BANK = ["bank.0", "bank.1", "bank.2"]
OTHERS = ["greedy", "slm", "fba", "fba add"]
METHODS = {
    "greedy": (["local=greedy"], []),
    "slm": (["local=fba"], []),
    "fba": (["fba=on"], []),  # the long skip is always sent
    "fba every": (["fba=on", "fba.features=every"], BANK),
    "fba add": (["fba=on", "fba.features=every", "fba.fusion=add"], BANK),
}


@pytest.mark.parametrize(
    "name", ["fba every", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
def test_ppll_is_sequential_local_learning(tmp_path: Path, data: list[str], name: str) -> None:
    """Each unit is a module. The long skip is sent with the map, and so are banked maps."""
    method, bank = METHODS[name]
    case = [*EDSR, *COURSE, *data, *method, "local.modules=5"]
    expected = run_inside(tmp_path / "ll", "schedule=ll", *case)
    pipelined = run_inside(tmp_path / "ppll", "schedule=ppll", "gpus=2", *case)
    routes = pipelined.job.routes
    (crossing,) = [channel.chunk for channel in pipelined.job.channels]
    assert [*routes.into[crossing].names] == [*bank, "bicubic", "first", "target", "tile", "x"]
    assert_same(pipelined.tensors, expected.tensors)
    assert pipelined.test == expected.test


@pytest.mark.slow
def test_stages_may_group_modules_in_any_way(tmp_path: Path, data: list[str]) -> None:
    case = [*EDSR, *COURSE, *data, "fba=on", "local.cuts=[body.0,body.2,tail]", "partition=flops"]
    expected = run_inside(tmp_path / "ll", "schedule=ll", *case)
    for gpus in (4,):
        found = run_inside(tmp_path / "ppll", "schedule=ppll", f"gpus={gpus}", *case)
        assert_same(found.tensors, expected.tensors)


def test_two_modules_get_no_note_about_an_unused_bank(data: list[str]) -> None:
    """The bank is only the long skip from the first features, so a note would mean nothing."""
    notes = prepared(*EDSR, *data, "fba=on", "local.modules=2", "batch_size=4", "gpus=2").notes
    assert not any(note.startswith("fba") for note in notes)


def test_the_record_has_all_settings_of_the_bank_resolved(tmp_path: Path, data: list[str]) -> None:
    """Defaults may change later. Then the record still says which bank the run had."""
    case = [*EDSR, *data, "fba=on", "batch_size=4", "gpus=2"]
    config, choices = compose_config(case)
    assert (config["fba"]["features"], config["local"]["bank"]["fusion"]) == (None, None)
    beginning.record(tmp_path, config, choices, prepared(*case))
    recorded = recorded_in(tmp_path, "resume").config
    bank = {"enabled": True, "features": "first", "fusion": "add", "shared_head": True}
    bank |= {"join": "head", "trains": "module", "normalize": False, "measure_zeroed": False}
    assert recorded["fba"] == recorded["local"]["bank"] == bank
    assert settings.parse(dict(recorded)).fba.features == "first"


@pytest.mark.parametrize(
    "keys",
    [pytest.param({"features": "every", "fusion": "concatenate"}, marks=pytest.mark.slow), {}],
)
def test_an_older_record_means_a_bank_of_every_modules_features(
    data: list[str], keys: dict[str, str]
) -> None:
    """The older record has `every`. A still older one lacks the key."""
    case = [*EDSR, *data, "fba=on", "local.modules=4", "batch_size=4", "schedule=ll"]
    config, _ = compose_config(case)
    config["fba"] = {"enabled": True, **keys, "shared_head": True}
    config["local"]["bank"] = dict(config["fba"])
    old = prepare(settings.parse(config), "unused")
    asked = prepared(*case, "fba.features=every", "fba.fusion=concatenate")
    assert old.job.local == asked.job.local
    assert old.auxiliary_costs == asked.auxiliary_costs
    assert old.auxiliary_costs != prepared(*case).auxiliary_costs


def test_the_gradient_of_the_long_skip_travels_back(tmp_path: Path, data: list[str]) -> None:
    case = [*EDSR, *COURSE, *data, "optim.clip_norm=0.5"]
    expected = run_inside(tmp_path / "bp", "schedule=bp", *case)
    pipelined = run_inside(tmp_path / "pp", "schedule=pp", "gpus=3", *case)
    assert_same(pipelined.tensors, expected.tensors)
    back = {pair: names for pair, names in pipelined.job.crossing().items() if pair[0] > pair[1]}
    assert back == {(1, 0): {"first", "x"}, (2, 1): {"first", "x"}}


@pytest.mark.slow
def test_a_resumed_run_continues_where_it_stopped(run: Runner, data: list[str]) -> None:
    case = ["fba=on", "local.modules=3", *EDSR, *COURSE, *data]
    whole = run("schedule=ppll", "gpus=2", *case)
    stopped = run("schedule=ppll", "gpus=2", *case, "max_steps=2")
    continued = resumed(stopped, "max_steps=5", "gpus=3")
    assert_same_run(continued, whole)
    views = [image_bytes(path) for path in sorted((continued.run_dir / "samples").iterdir())]
    assert views == [image_bytes(path) for path in sorted((whole.run_dir / "samples").iterdir())]
    assert len(views) == 2


def image_bytes(path: Path) -> tuple[tuple[int, int], bytes]:
    with Image.open(path) as image:
        return image.size, image.tobytes()


def test_the_last_line_of_a_run_compares_its_score_with_bicubic(data: list[str]) -> None:
    shown = facts(prepared(*EDSR, *data, "gpus=2", "batch_size=4"))
    assert (shown.metric, shown.reference) == ("psnr", "bicubic")


def test_a_run_reports_its_scores_beside_those_of_bicubic(run: Runner, data: list[str]) -> None:
    """Each module has its scores, and bicubic's.

    Tiles of 31 pixels give the same as whole pictures.
    """
    case = [
        "schedule=ppll",
        "gpus=2",
        "max_steps=2",
        "batch_size=4",
        *EDSR,
        *data,
        "data.flip=false",
    ]
    tiled, whole = run(*case), run(*case, "data.tile=64")
    assert_same(tiled.tensors(), whole.tensors())
    assert list(tiled.test) == ["loss", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "rgb_psnr"]
    # Results are rounded to 8 bits. A different rounding error in float32 can change a value by 1.
    assert tiled.test["psnr"] == pytest.approx(whole.test["psnr"], abs=1e-2)
    assert tiled.test["rgb_psnr"] == pytest.approx(whole.test["rgb_psnr"], abs=1e-2)
    assert tiled.test["ssim"] == pytest.approx(whole.test["ssim"], abs=1e-4)
    assert tiled.test["bicubic_psnr"] == whole.test["bicubic_psnr"]
    first, last = (module["test"] for module in tiled.summary["per_module"])
    assert last == tiled.test
    assert first.keys() == last.keys()
    lines = [json.loads(t) for t in (tiled.run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if line["split"] == "train")
    assert "psnr" in trained
    assert "ssim" not in trained


def test_slots_fit_the_larger_of_patches_and_tiles(data: list[str]) -> None:
    """A patch has 8x8 pixels, and a tile 30x31 of four channels.

    The skip and the targets of the tile are sent too.
    """
    job = prepared(*EDSR, *data, "gpus=2", "batch_size=4").job
    (room,) = job.channels.values()
    assert job.course.evaluation_size == 1
    assert job.course.samples == {"train": 10, "test": len(tiles(job.settings.data))}
    pixels = 30 * 31  # the pictures are 30 and 29 pixels high
    least = 4 * pixels * (4 + 4 + 3 * 4)  # x, first, target
    assert least <= room.size < least + 5 * 512  # each tensor is aligned


def tiles(data: object) -> tuple[object, ...]:
    from ppll_cli.config.targets import make

    found: tuple[object, ...] = make("data", data).load()["test"].tiles  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(
            *(["local=predsim"], "local=predsim: is for classification"), marks=pytest.mark.slow
        ),
        (["local=infopro"], "local=infopro: is for classification"),
        pytest.param(*(["local=dgl"], "local=dgl: is for classification"), marks=pytest.mark.slow),
        (["local=vit_blocks"], r"local=vit_blocks: needs tokens \[T, D\]"),
        (["model.depth=8"], "data.overlap=13: edsr and SSIM use pixels at distances up to 23"),
        (["batch_size=11"], "batch_size=11: the training set has 10 samples"),
    ],
)
def test_settings_that_do_not_apply_to_super_resolution_are_refused(
    data: list[str], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(*EDSR, *data, "gpus=2", "batch_size=4", *overrides)


def test_models_and_data_of_two_tasks_do_not_mix(data: list[str]) -> None:
    with pytest.raises(ConfigError, match="model=edsr: is for super-resolution"):
        prepared("model=edsr", "data=digits")
    with pytest.raises(ConfigError, match="model=resnet32: is for classification"):
        prepared("model=resnet32", *data, "batch_size=4")


def test_auglocal_copies_units_and_the_head(data: list[str]) -> None:
    job = prepared(*EDSR, *data, "gpus=2", "batch_size=4", "local=auglocal").job
    assert torch.float32 in {spec.dtype for spec in job.specs[1].values()}


@pytest.mark.slow
def test_ppll_plan_plans_super_resolution(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "profiles"))
    done = ppll_plan(*EDSR, *data, "gpus=2", "batch_size=4", "device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model=edsr (5 units) data=photos batch_size=4 fp32 on ")
