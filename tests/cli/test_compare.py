"""ppll-compare as a user sees it."""

import os
from pathlib import Path

import pytest

from tests.observe.compared_runs import make
from tests.program import imported, ppll_compare


def test_comparing_a_sweep_writes_into_its_folder(tmp_path: Path) -> None:
    make(tmp_path / "0", "bp", 100.0, gpus=1)
    make(tmp_path / "1", "ppll", 150.0)
    done = ppll_compare(tmp_path)
    assert done.returncode == 0
    head, bp, ppll, *_, last = done.stdout.splitlines()
    assert head.split()[:4] == ["run", "status", "schedule", "gpus"]
    assert bp.split()[:6] == ["0", "completed", "bp", "1", "100", "1.00"]
    assert ppll.split()[:6] == ["1", "completed", "ppll", "2", "150", "1.50"]
    assert last == f"{tmp_path}/comparison.md, .csv and .png"
    for end in ("csv", "md", "png"):
        assert (tmp_path / f"comparison.{end}").stat().st_size > 0


def test_comparing_a_run_writes_nothing_into_its_folder(tmp_path: Path) -> None:
    make(tmp_path / "run", "bp", gpus=1)
    before = sorted((tmp_path / "run").iterdir())
    done = ppll_compare("run", cwd=tmp_path)
    assert done.returncode == 0
    assert sorted((tmp_path / "run").iterdir()) == before
    assert done.stdout.splitlines()[-1] == "comparison.md, .csv and .png"
    assert (tmp_path / "comparison.md").exists()


def test_comparing_several_folders_writes_into_the_current_one(tmp_path: Path) -> None:
    make(tmp_path / "one", "bp", gpus=1)
    make(tmp_path / "two", "ppll")
    (tmp_path / "here").mkdir()
    assert ppll_compare("../one", "../two", cwd=tmp_path / "here").returncode == 0
    assert "two" in (tmp_path / "here" / "comparison.csv").read_text()
    done = ppll_compare("../one", "../two", "--output", "new/place", cwd=tmp_path / "here")
    assert done.returncode == 0
    assert (tmp_path / "here" / "new" / "place" / "comparison.png").exists()


def test_seeds_are_grouped_unless_each_is_given(tmp_path: Path) -> None:
    for seed in range(2):
        make(tmp_path / str(seed), "bp", 100.0 + seed, gpus=1, config={"seed": seed})
    done = ppll_compare(tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("0, 1  2 completed  bp ")
    assert (tmp_path / "comparison_groups.csv").read_text().count("\n") == 2
    done = ppll_compare(tmp_path, "--each")
    assert done.returncode == 0
    rows = done.stdout.splitlines()[1:3]
    assert [row.split()[:5] for row in rows] == [
        ["0", "completed", "bp", "1", "seed=0"],
        ["1", "completed", "bp", "1", "seed=1"],
    ]


def test_refused_jobs_are_listed(tmp_path: Path) -> None:
    line = '{"job": 0, "overrides": ["gpus=0", "~tracker"], "error": "gpus=0: none"}\n'
    (tmp_path / "refused.jsonl").write_text(line)
    done = ppll_compare(tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split() == [*("0", "refused", "?", "gpus=0", "~tracker")]
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/comparison.md and .csv"
    assert done.stderr == ""  # there is no run to draw


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "RUN_OR_SWEEP_DIR=nowhere: there is no such folder"),
        ([""], "RUN_OR_SWEEP_DIR=: there is no such folder"),
        ([__file__], f"RUN_OR_SWEEP_DIR={__file__}: is not a folder"),
        (["empty"], "RUN_OR_SWEEP_DIR=empty: holds no run"),
        ([], "arguments=: the following arguments are required: RUN_OR_SWEEP_DIR"),
        (["run", "--nonsense"], "arguments=run --nonsense: unrecognized arguments: --nonsense"),
        (["run", "--output", "run/config.json"], "--output=run/config.json: cannot be written to"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "run", "bp", gpus=1)
    done = ppll_compare(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"ppll-compare: {line}")


def test_a_folder_without_runs_beside_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "run", "bp", gpus=1)
    done = ppll_compare("empty", "run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == "ppll-compare: empty holds no run\n"


def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = ppll_compare(tmp_path)
    assert done.returncode == 2
    assert "cannot be read: permission denied" in done.stderr


def test_a_run_directory_whose_name_is_not_utf8_is_compared(tmp_path: Path) -> None:
    make(tmp_path / "run\udcff", "bp", gpus=1)
    done = ppll_compare("run\udcff", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("run\\udcff  completed")
    assert "run\\udcff" in (tmp_path / "comparison.csv").read_text()


def test_neither_torch_nor_hydra_is_imported(tmp_path: Path) -> None:
    make(tmp_path / "run", "bp", gpus=1)
    heavy = ["torch", "hydra", "omegaconf"]
    (end,) = imported("ppll_cli.cli.compare", heavy, [["run"]], tmp_path)
    assert end == (["run"], 0, [])
