"""The command line as a user sees it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ppll_cli.config.composition import register_resolvers
from ppll_cli.config.options import conf_dir
from tests.conftest import own_model
from tests.program import imported, ppll_run

ROOT = Path(__file__).parents[2]
PLACES = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
TINY = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
TINY += ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=8", "device=cpu"]
PLAIN = ["timeline=false", *TINY]


def start(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "ppll_cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PLACES, "FULL": "full"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def command_lines() -> list[str]:
    """Return the command lines of all processes of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended since
            found.append(path.read_text())
    return found


def run_dir(cwd: Path) -> Path:
    (found,) = cwd.glob("outputs/*/*/")
    return found


@pytest.mark.slow
def test_a_refused_run_leaves_no_fork_server(tmp_path: Path) -> None:
    """The fork server starts before the configuration is checked.

    It needs seconds to import torch.
    """
    with start("gpus=0", cwd=tmp_path) as process:
        assert process.wait(timeout=100) == 2
        # The server's command line has its import path, which contains the caller's folder.
        ours = [line for line in command_lines() if str(tmp_path) in line]
        assert not [line for line in ours if "forkserver" in line]


def test_a_run_completes_and_writes_everything(tmp_path: Path) -> None:
    result = ppll_run("epochs=2", "eval_every=1", "local.modules=3", *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = run_dir(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    last_line = result.stdout.splitlines()[-1]
    assert last_line == f"test accuracy {summary['test']['accuracy']:.4f} in " + str(
        folder.relative_to(tmp_path)
    )

    assert summary["status"] == "completed"
    assert (summary["schedule"], summary["model"], summary["data"]) == ("ppll", "vit", "synthetic")
    assert (summary["gpus"], summary["devices"]) == (2, ["cpu", "cpu"])
    assert (summary["modules"], summary["steps"], summary["batch_size"]) == (3, 10, 8)
    assert [len(module["units"]) for module in summary["per_module"]] == [2, 1, 1]
    assert [module["aux_params"] for module in summary["per_module"]] == [170, 170, 0]
    assert summary["per_module"][2]["test"] == summary["test"]
    assert all(0 <= module["test"]["accuracy"] <= 1 for module in summary["per_module"])
    assert [stage["modules"] for stage in summary["stages"]] == [[0], [1, 2]]
    (edge,) = summary["edges"]
    # There are 10 training and 2 evaluation batches of 8 samples. A sample has tokens [5, 16] in
    # float32 and a label.
    assert edge == {
        "from": 0,
        "to": 1,
        "names": ["label", "x"],
        "bytes_sent": 12 * 8 * (5 * 16 * 4 + 8),
    }
    assert summary["train"]["samples_per_second"] > 0
    assert summary["pipeline"]["predicted_samples_per_second"] > 0
    assert 0 <= summary["pipeline"]["bubble_fraction"] < 1
    for stage in summary["stages"]:
        shares = [value for key, value in stage.items() if key.endswith("_fraction")]
        assert 0 < sum(shares) <= 1.01  # on a busy machine, the rest is time without a core
        assert stage["peak_memory_bytes"] > 0
        assert stage["peak_reserved_bytes"] is None  # only CUDA's allocator reserves memory

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seen = {(line["epoch"], line["split"], line["module"], line["stage"]) for line in lines}
    where = {None: 1, 0: 0, 1: 1}
    assert seen == {
        (epoch, split, module, stage)
        for epoch in (1, 2)
        for split in ("train", "test")
        for module, stage in where.items()
    }
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 8
    assert (folder / ".hydra" / "overrides.yaml").exists()
    for name in ("ppll-run.log", "timeline.json", "timeline.png", "model.safetensors"):
        assert (folder / name).exists()
    assert os.readlink(folder / "checkpoints" / "last") == "step-10"


def test_a_refused_run_keeps_files_that_existed_before(tmp_path: Path) -> None:
    """A configuration file names the folder.

    The program once did not see this, and removed the folder.
    """
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    lines = ["# @package _global_", "hydra:", "  run:", "    dir: full"]
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("\n".join(lines))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    result = ppll_run("experiment=mine", "gpus=0", "--config-dir=conf", cwd=tmp_path)
    assert result.returncode == 2
    assert "holds precious; choose a new folder" in result.stderr
    assert (tmp_path / "full" / "precious").exists()


def test_commands_that_need_no_model_do_not_import_torch(tmp_path: Path) -> None:
    answered = [["--version"], ["--help"], ["--cfg", "job"]]
    refused = [["schedule._target_=no.Such"], ["data.root=/nonexistent"]]  # what is found last
    found = imported("ppll_cli.cli.app", ["torch"], [*answered, *refused], tmp_path)
    assert [status for _, status, _ in found] == [0] * len(answered) + [2] * len(refused)
    assert not [call for call, _, modules in found if modules]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cfg", "job"],
        *(pytest.param([a], marks=pytest.mark.slow) for a in ("--help", "--version")),
    ],
)
def test_a_text_that_cannot_be_written_is_a_failure(tmp_path: Path, arguments: list[str]) -> None:
    """`ppll-run --cfg job > FILE` once ended with status 0 on a full disk."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ppll_cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": PLACES},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "ppll-run: the output cannot be written: No space left on device\n"


def test_a_failed_run_shows_the_root_cause_first(tmp_path: Path) -> None:
    model = own_model("Faulty", unit="second", act="raise")
    data = [key for key in PLAIN if not key.startswith("model")]
    result = ppll_run("gpus=3", *model, *data, cwd=tmp_path)
    assert result.returncode == 1
    screen = result.stderr[result.stderr.index("ppll-run: ") :].splitlines()
    assert screen[0] == "ppll-run: stage 1 (cpu): ArithmeticError: the third pass is too much"
    folder = run_dir(tmp_path)
    assert f"  log: {folder / 'ppll-run.log'}" in screen
    assert "ArithmeticError" in (folder / "ppll-run.log").read_text()
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    """The test does what `ppll-run | head -1` does, with standard error closed too.

    Rich once ended such a run with status 1.
    """
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "ppll_cli", f"hydra.run.dir={folder}", "max_steps=5", *PLAIN]
    here, there = os.pipe()
    os.close(here)
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" 2>&-', "bash", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=there,
        timeout=100,
        check=False,
    )
    os.close(there)
    assert done.returncode == 0
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert (folder / "model.safetensors").exists()
    lines = (folder / "ppll-run.log").read_text().splitlines()
    said = "nothing more is written to stdout: Broken pipe"
    assert sum(line.endswith(said) for line in lines) == 1
    assert "INFO test accuracy " in lines[-1]


@pytest.mark.slow
def test_a_sweep_continues_after_a_refused_job(tmp_path: Path) -> None:
    """Overrides are on both sides of the option `--multirun`, as people write them."""
    sweep = ["schedule=pp,ppll", "--multirun", "gpus=1,9", "max_steps=2"]
    result = ppll_run(*sweep, *PLAIN, cwd=tmp_path)
    assert result.returncode == 2
    assert "gpus=9: makes 9 stages, but the model has only 4 units" in result.stderr
    (folder,) = tmp_path.glob("outputs/sweeps/*/*")
    assert sorted(path.parent.name for path in folder.glob("*/summary.json")) == ["0", "2"]
    lines = (folder / "comparison.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines[1:]] == ["completed", "refused"] * 2
    assert (folder / "comparison.png").exists()
    assert "1 refused: gpus=9: makes 9 stages, but the model has only 4 units" in result.stdout


@pytest.mark.parametrize(
    ("override", "end"),
    [("name=null", r"-\d+"), ("name=wide-2", r"-\d+-wide-2"), ("name=../x", r"-\d+-.._x")],
)
def test_the_folders_name_ends_with_the_runs_name(override: str, end: str) -> None:
    """A name with a path cannot lead to another folder, even before it is refused."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [override], return_hydra_config=True)
    for folder in (config.hydra.run.dir, config.hydra.sweep.dir):
        assert re.fullmatch(r"outputs/(sweeps/)?[\d-]+/\d\d-\d\d-\d\d" + end, folder)


@pytest.mark.slow
def test_the_commands_that_a_run_prints_work(tmp_path: Path) -> None:
    """The folder and the option have names that a shell and Hydra would misread without quotes."""
    options = tmp_path / "my conf" / "model"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("defaults: [vit]\n")

    def shell(line: str) -> "subprocess.CompletedProcess[str]":
        env = {**os.environ, "PYTHONPATH": PLACES}
        return subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )

    def printed(name: str, text: str) -> str:
        (found,) = re.findall(rf"^ *{name}: (.*)$", text, re.MULTILINE)
        return str(found)

    folder = tmp_path / "a b=c" / "it's"
    given = ["--config-dir=my conf", "model=mine", f'hydra.run.dir="{folder}"', *PLAIN]
    with start(*given, "epochs=100000", "eval_every=1", cwd=tmp_path) as process:
        assert process.stdout is not None
        while "epoch 1/" not in (line := process.stdout.readline()):  # now it trains
            assert line, "the run has ended"
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    steps = json.loads((folder / "summary.json").read_text())["steps"]
    on = shell(f"{printed('to continue', err)} max_steps={steps + 2}")
    assert on.returncode == 0, on.stderr
    assert json.loads((folder / "summary.json").read_text())["steps"] == steps + 2

    swept = shell(f"{printed('next', on.stdout)} max_steps=2")
    assert swept.returncode == 0, swept.stderr
    again = printed("next", swept.stdout)
    assert " -m ppll_cli.cli.compare outputs/sweeps/" in again
    compared = shell(again)
    assert compared.returncode == 0, compared.stderr
