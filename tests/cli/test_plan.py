"""ppll-plan as a user sees it, and its classes."""

import io
import re
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ppll_cli.cli import plan as planning
from ppll_cli.cli.plan import GPUS, SCHEDULES, Plan
from ppll_cli.cli.planner import Row
from ppll_cli.errors import ConfigError
from ppll_cli.predict.speed import predict
from tests import program
from tests.predict import given
from tests.predict.given import Source
from tests.program import Call

ROOT = Path(__file__).parents[2]
TINY = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
TINY += ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=8", "device=cpu"]


def ppll_plan(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cwd / "cache"))
        return program.ppll_plan(*arguments, cwd=cwd)


@pytest.mark.slow
def test_a_plan_has_a_row_for_every_schedule(tmp_path: Path) -> None:
    result = ppll_plan("--latency=1e-5", "gpus=1,2,64", *TINY, "--bandwidth=1e9", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("model=vit (4 units) data=synthetic batch_size=8 fp32 on ")
    titles = [line for line in lines if line.startswith("gpus=") and " wins, " in line]
    assert [title.split(":")[0] for title in titles] == ["gpus=1", "gpus=2", "gpus=64"]
    for name in SCHEDULES:
        rows = [line for line in lines if re.match(rf"[│|] {name} ", line)]
        assert len(rows) == 3
        assert ("more stages than units" in rows[2]) == (name != "bp")
        for row in rows[:2]:
            cells = [cell.strip() for cell in re.split("[│|]", row)[1:-1]]
            assert cells[0] == name
            assert float(cells[1]) > 0
            assert 0 <= float(cells[2]) < 1
            assert float(cells[3]) > 0
    assert any(line.startswith("bp on one device: ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_narrow_terminal_cuts_off_no_digits() -> None:
    """On 80 columns, the table once had `123…` in place of 12346 samples/s."""
    stages = {key: [0.25] for key in ("stage_s", "activation_bytes", "parameter_bytes")}
    found = {"samples_per_second": 12346.0, "bubble_fraction": 0.123, **stages}
    prediction: Any = SimpleNamespace(**found, edges=[], batch_s=1.0, recovery_bytes=[])
    row: Any = SimpleNamespace(prediction=prediction, speed_up=1.5, obstacle="")
    out = io.StringIO()
    Console(width=80, file=out).print(planning._table(2, {"ppll": row}))
    assert "…" not in out.getvalue()
    assert "12346" in out.getvalue()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["gpus=1,x"],
            "gpus=x: must be a valid integer; give whole numbers, as in gpus=1,2,4,8",
        ),
        (["gpus=2,0"], "gpus=0: must be greater than or equal to 1"),
        (
            ["replicas=2,x"],
            "replicas=x: must be a valid integer; give whole numbers, as in replicas=1,2,4,8",
        ),
        (["replicas=3"], "replicas=3: gpus=1 cannot be divided evenly"),
        (["gpus=1,"], "gpus=1,: Hydra cannot parse this override: mismatched input"),
        (["model=vit,resnet32"], "model=vit,resnet32: ppll-plan takes several values only"),
        (["gpus=[]"], "gpus=[]: has no value; give one value or several"),
        (["schedule=[]"], "schedule=[]: has no value"),
        (["gpus=null"], "gpus=null: must be a valid integer"),
        (["model=vti"], "model=vti: there is no such option; did you mean vit?"),
        (["modle=vit"], "modle=vit: there is no such key; did you mean model? "),
        (["schedule=ppll,pppl"], "schedule=pppl: there is no such option; did you mean ppll?"),
        (
            ["schedule._target_=my.Own"],
            "schedule._target_=my.Own: ppll-plan compares bp, ll, pp, gpipe, 1f1b, interleaved, "
            "zb_h1, ppll, and this class would replace each of them; write a YAML file for ",
        ),
        (
            ["schedule=1f1b,gpipe", "schedule._target_=my.Own"],
            "schedule._target_=my.Own: ppll-plan compares 1f1b, gpipe, and this class would",
        ),
        (["optim.lr=-1"], "optim.lr=-1: must be greater than 0"),
        (["resume=outputs/run"], "resume=outputs/run: is only for ppll-run; give the overrides"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: is only for ppll-run; leave it out"),
        (["+hydra/launcher=a,b"], "hydra/launcher=a,b: is only for ppll-run; leave it out"),
        (["model.dim=${nothing}"], "model.dim=${nothing}: Interpolation key 'nothing' not found"),
        (["data.root=/nonexistent"], "data.root=/nonexistent: is not a folder that can be read"),
        (["--multirun"], "arguments=--multirun: unrecognized arguments: --multirun; see "),
        (["--bandwidth=0"], "arguments=--bandwidth=0: argument --bandwidth: '0' is not a positive"),
        (["--latency=1"], "arguments=--latency=1: --latency needs the --bandwidth of"),
        (
            ["--per-machine=x", "--network=1"],
            "arguments=--per-machine=x --network=1: argument --per-machine",
        ),
        (["--network=1e9"], "arguments=--network=1e9: --network and --per-machine must be"),
        (
            ["--network-latency=1"],
            "arguments=--network-latency=1: --network-latency needs --network",
        ),
        (
            ["--config-dir=none"],
            "arguments=--config-dir=none: argument --config-dir: there is no folder none",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    done = ppll_plan(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (complaint,) = done.stderr.splitlines()
    assert complaint.startswith(f"ppll-plan: {line}")
    assert not list(tmp_path.iterdir())


def test_commands_that_need_no_model_do_not_import_torch(tmp_path: Path) -> None:
    refused = [["optim.lr=-1"], ["gpus=1,x"]]
    expected: list[Call] = [(["--help"], 0, []), *((each, 2, []) for each in refused)]
    calls = [["--help"], *refused]
    assert program.imported("ppll_cli.cli.plan", ["torch"], calls, tmp_path) == expected


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ([], GPUS),
        (["gpus=4"], (4,)),
        (["gpus=8,2,8"], (8, 2)),
        (["gpus=[1,2]"], (1, 2)),
        (["gpus=range(1,4)"], (1, 2, 3)),
    ],
)
def test_lists_of_gpus_are_parsed(given: list[str], gpus: tuple[int, ...]) -> None:
    assert Plan.compose([*given, "schedule=bp"]).gpus == gpus


def test_a_plan_has_the_given_schedules() -> None:
    plan = Plan.compose(["schedule=gpipe,ppll", "schedule.microbatches=8", "model=resnet32"])
    assert list(plan.configs) == ["gpipe", "ppll"]
    assert plan.settings("gpipe", 4).schedule["microbatches"] == 8
    assert (plan.choices["model"], plan.settings("ppll", 4).gpus) == ("resnet32", 4)
    assert tuple(Plan.compose([]).configs) == SCHEDULES


def test_a_key_of_one_schedule_is_for_this_schedule_alone() -> None:
    plan = Plan.compose(["schedule=1f1b,interleaved", "schedule.chunks=3"])
    assert plan.settings("interleaved", 1).schedule["chunks"] == 3
    assert "chunks" not in plan.settings("1f1b", 1).schedule
    with pytest.raises(ConfigError, match="chunks=3: there is no such key; it is a key of"):
        Plan.compose(["schedule=1f1b,gpipe", "schedule.chunks=3"])


@pytest.mark.parametrize(
    ("given", "cores", "threads"),
    [
        (["gpus=1,2,4,64"], 16, 4),  # as with ppll-run gpus=4; 64 devices are more than the cores
        (["gpus=2"], 2, 1),
        (["gpus=64"], 2, 1),
        (["gpus=1"], 2, 2),
        (["gpus=1,2", "threads=3"], 2, 3),
    ],
)
def test_all_workers_have_the_same_threads(
    monkeypatch: pytest.MonkeyPatch, given: list[str], cores: int, threads: int
) -> None:
    monkeypatch.setattr(planning, "usable_cores", lambda: cores)
    plan = Plan.compose([*given, "schedule=bp"])
    assert {plan.settings("bp", gpus).threads for gpus in plan.gpus} == {threads}


def test_what_is_kept_for_restarts_has_a_column() -> None:
    """Only where there is something, and empty for schedules that cannot restart a stage."""
    whole, staged = (predict(given.job(name, 2), Source()) for name in ("bp", "ppll"))
    kept = replace(staged, recovery_bytes=[2_000_000, 3_500_000])
    table = planning._table(2, {"bp": Row("bp", whole), "ppll": Row("ppll", kept)})
    (column,) = [each for each in table.columns if each.header == "recovery MB"]
    assert [*column.cells] == ["", "2 / 3.5"]
    plain = planning._table(2, {"bp": Row("bp", whole), "ppll": Row("ppll", staged)})
    assert "recovery MB" not in [each.header for each in plain.columns]


def test_options_from_a_config_dir_can_be_planned(tmp_path: Path) -> None:
    own = tmp_path / "conf, mine"  # Hydra's grammar would read this name as two words
    (own / "model").mkdir(parents=True)
    lines = ["defaults: [vit]", "depth: 5"]
    (own / "model" / "mine.yaml").write_text("\n".join(lines))
    options = planning._options(["model=mine", "--config-dir", str(own)])
    assert Plan.compose(options.overrides).settings("bp", 1).model["depth"] == 5
