"""ppll-plan as a user sees it, and its classes."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ppll_cli.cli import plan as planning
from ppll_cli.cli.plan import GPUS, SCHEDULES, Plan
from ppll_cli.cli.planner import Planner, Row
from ppll_cli.errors import ConfigError
from ppll_cli.job.job import Job
from ppll_cli.predict.interconnect import Interconnect, Link
from ppll_cli.predict.speed import Prediction, predict
from tests import program
from tests.predict import given
from tests.predict.dictated import dictate
from tests.predict.given import Source

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
        (["gpus=1,x"], "gpus=1,x: must be whole numbers above 0"),
        (["gpus=2,0"], "gpus=2,0: must be whole numbers above 0"),
        (["replicas=2,x"], "replicas=2,x: must be whole numbers above 0"),
        (["replicas=3"], "replicas=3: gpus=1 cannot be divided evenly"),
        (["gpus=1,"], "gpus=1,: Hydra cannot read this: mismatched input"),
        (["model=vit,resnet32"], "model=vit,resnet32: ppll-plan takes several values only"),
        (["model=vti"], "model=vti: there is no such option; did you mean vit?"),
        (["modle=vit"], "modle=vit: there is no such key; did you mean model? "),
        (["schedule=ppll,pppl"], "schedule=pppl: there is no such option; did you mean ppll?"),
        (["optim.lr=-1"], "optim.lr=-1: must be greater than 0"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["optim.lr=-1"],
        *(pytest.param(a, marks=pytest.mark.slow) for a in (["gpus=1,x"], ["model=vti"])),
    ],
)
def test_commands_that_need_no_model_do_not_import_torch(
    tmp_path: Path, arguments: list[str]
) -> None:
    assert program.imported("ppll_cli.cli.plan", ["torch"], arguments, tmp_path) == []


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which measured times are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ppll-run" / "profile"


Make = Callable[..., Planner]


@pytest.fixture
def planner(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that makes planners, for which all units take the same time."""
    dictate(monkeypatch)
    yield from _planners()


@pytest.fixture
def measuring(cache: Path) -> Iterator[Make]:
    """Return a function that makes planners, which measure in processes that end with the test."""
    yield from _planners()


def _planners() -> Iterator[Make]:
    with ExitStack() as stack:

        def make(*overrides: str) -> Planner:
            plan = Plan.compose([*TINY, "threads=1", *overrides])
            return stack.enter_context(Planner(plan.settings, list(plan.configs), plan.replicas))

        yield make


@pytest.mark.slow
def test_a_second_plan_measures_nothing(
    cache: Path, measuring: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measuring("schedule=bp,gpipe,ppll").rows(2)
    # There is a file for whole batches and one for micro-batches, each measured alone. If there are
    # cores for a neighbour, there are two more, measured beside it.
    assert len(list(cache.iterdir())) in (2, 4)
    monkeypatch.delattr("ppll_cli.predict.meter.Meter._start")
    assert measuring("schedule=bp,gpipe,ppll").rows(2) == first
    assert first["bp"].speed_up == pytest.approx(1.0)


def test_rows_that_cannot_run_say_why(planner: Make) -> None:
    found = planner("local.modules=3", "schedule.microbatches=9", "schedule=bp,gpipe,ll,ppll")
    rows = {gpus: found.rows(gpus) for gpus in (2, 4, 5)}
    assert [row.obstacle for row in rows[4].values()] == [
        *["a batch of 8 samples cannot be split into so many micro-batches"] * 2,
        "",
        "more stages than modules",
    ]
    assert rows[5]["ppll"].obstacle == "more stages than units"
    assert rows[2]["ppll"].prediction is not None
    found.check()


def test_what_is_kept_for_restarts_has_a_column() -> None:
    """Only where there is something, and empty for schedules that cannot restart a stage."""
    whole, staged = (predict(given.job(name, 2), Source()) for name in ("bp", "ppll"))
    kept = replace(staged, recovery_bytes=[2_000_000, 3_500_000])
    table = planning._table(2, {"bp": Row("bp", whole), "ppll": Row("ppll", kept)})
    (column,) = [each for each in table.columns if each.header == "recovery MB"]
    assert [*column.cells] == ["", "2 / 3.5"]
    plain = planning._table(2, {"bp": Row("bp", whole), "ppll": Row("ppll", staged)})
    assert "recovery MB" not in [each.header for each in plain.columns]


@pytest.mark.parametrize("key", ["compile", "recompute"])
def test_splitting_backwards_excludes_some_settings(planner: Make, key: str) -> None:
    row = planner("schedule=zb_h1", f"{key}=true").rows(2)["zb_h1"]
    assert (
        row.obstacle
        == f"this schedule splits each backward into halves, which {key}=true does not allow"
    )


def test_replicas_have_their_own_rows(planner: Make) -> None:
    """Replicas share a batch, so each takes about half as long, and then averages gradients."""
    found = planner("schedule=bp,ppll", "gpus=2,3", "replicas=1,2")
    rows = found.rows(2)
    assert list(rows) == ["bp", "ppll", "bp, 2 replicas", "ppll, 2 replicas"]
    assert all(row.prediction is not None for row in rows.values())
    assert {row.obstacle for row in found.rows(3).values()} == {
        "",
        "the devices cannot be shared evenly",
    }
    assert "all-reduce takes as long as" in "\n".join(found.notes([2]))


def test_the_fastest_layout_depends_on_the_network(cache: Path) -> None:
    """On a slow network, the fastest layout sends no gradients, because they are larger."""
    plan = Plan.compose([*TINY, "threads=1", "schedule=ppll", "model.dim=128", "batch_size=4"])
    for network in (1e12, 1e3):
        interconnect = Interconnect(between=Link(network))
        with Planner(plan.settings, ["ppll"], None, interconnect, per_machine=1) as found:
            row = found.fastest(4)
            assert row is not None
            assert found.replicas is None
            found.replicas = (1, 2, 4)
            rows = found.rows(4)
        assert row == max(rows.values(), key=lambda row: row.speed_up)
    assert row is not None
    assert (row.stages, row.replicas, row.machines) == (4, 1, 4)
    first, *lines = planning._told(row)
    assert first.startswith("fastest layout: ppll, 4 stages on 4 machines: ")
    pattern = r"  edge {0} > {1} between machines: 0.0\d+ MB a batch, .* link busy \d+% of the time"
    for cut, line in enumerate(lines):
        assert re.fullmatch(pattern.format(cut, cut + 1), line), line
    assert len(lines) == 3
    first, line = planning._told(rows["ppll, 4 replicas"])
    assert first.startswith("fastest layout: ppll, 1 stage x 4 replicas on 4 machines: ")
    assert re.fullmatch(r"  gradients: each replica sends 2\.\d+ MB a batch to average", line), line


@pytest.mark.parametrize("neighbours", [None, 1])
def test_neighbours_are_counted_on_each_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch, neighbours: int | None
) -> None:
    """If `neighbours` is given, it is used instead."""
    asked = list[tuple[int, int | None]]()

    def spy(job: Job, *given: Any) -> Prediction:
        asked.append((len({*job.homes}), given[-1]))
        return predict(job, *given)

    monkeypatch.setattr("ppll_cli.cli.planner.predict", spy)
    dictate(monkeypatch)
    plan = Plan.compose([*TINY, "threads=1", "schedule=ppll"])
    with Planner(plan.settings, ["ppll"], (1,), per_machine=2, neighbours=neighbours) as found:
        found.rows(4)
    assert asked == [(2, neighbours)]


def test_many_edges_are_described_in_one_line(planner: Make) -> None:
    found = planner("schedule=ppll", "model.depth=6", "replicas=1")
    row = found.fastest(8)
    assert row is not None
    assert row.prediction is not None
    told = list(planning._told(row))
    assert re.match(r"  7 edges within a machine: <= 0\.\d+ MB a batch, <= ", told[1])
    assert len(told) == 2


def test_a_plan_in_which_nothing_can_run_is_refused(planner: Make) -> None:
    found = planner("schedule=ppll,pp")
    found.rows(5)
    assert found.fastest(1024) is None
    with pytest.raises(
        ConfigError, match="gpus=5: makes 5 stages, but the model has only 4 units; "
    ):
        found.check()


def test_notes_explain_the_tables(planner: Make) -> None:
    found = planner("schedule=bp,gpipe")
    found.rows(1)
    notes = "\n".join(found.notes([1, 4096]))
    assert "gpus=4096: simulated as equal devices" in notes
    assert "some schedules split each batch (gpipe into 4): BatchNorm" in notes
    assert "local losses" not in notes


def test_notes_say_where_recovery_is_not_predicted(planner: Make) -> None:
    """A row with replicas cannot have it. Schedules that never can have it get no note."""
    found = planner("schedule=bp,ppll", "replicas=1,2", "recover=stage", "model.depth=6")
    for gpus in (1, 2, 4):
        found.rows(gpus)
    (note,) = [note for note in found.notes([1, 2, 4]) if "recover" in note]
    assert note == (
        "ppll, 2 replicas for gpus=4 is predicted without recover=stage: "
        "the replicas of a stage average their gradients"
    )


def test_notes_give_the_auxiliary_share_up_to_which_ppll_is_ahead(planner: Make) -> None:
    """The bound is (K - 1) / M against 1F1B, and a third of that against ZB-H1."""
    found = planner("schedule=1f1b,zb_h1,ppll", "schedule.microbatches=6")
    against_1f1b, against_zb = found.notes([1, 2, 8])[-2:]
    assert "ahead of 1f1b" in against_1f1b
    assert against_1f1b.endswith(": 0.17 for gpus=2, 1.17 for gpus=8")
    assert "ahead of zb_h1" in against_zb
    assert against_zb.endswith(": 0.06 for gpus=2, 0.39 for gpus=8")
    assert not [line for line in planner("schedule=1f1b").notes([2]) if "ahead" in line]


def test_options_from_a_config_dir_can_be_planned(tmp_path: Path) -> None:
    own = tmp_path / "conf, mine"  # Hydra's grammar would read this name as two words
    (own / "model").mkdir(parents=True)
    lines = ["defaults: [vit]", "depth: 5"]
    (own / "model" / "mine.yaml").write_text("\n".join(lines))
    options = planning._options(["model=mine", "--config-dir", str(own)])
    assert Plan.compose(planning.overrides_of(options)).settings("bp", 1).model["depth"] == 5
