"""Checks of the command line before Hydra reads it."""

from pathlib import Path

import pytest

from ppll_cli.cli.overrides import check_run_dir, for_each_job, ignored_folder, without_auto
from ppll_cli.errors import ConfigError


def auto(*overrides: str, sweep: bool = False) -> list[str]:
    return without_auto(overrides, sweep=sweep)


def test_files_of_an_early_start_up_do_not_block_a_folder(tmp_path: Path) -> None:
    """A folder with such files could once neither be resumed nor used again."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "ppll-run.log").touch()
    given = [f"hydra.run.dir={tmp_path}"]
    check_run_dir(given)
    assert auto("resume=auto", *given) == given
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        check_run_dir(given)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("config.json", "choose a new folder, or continue its run with resume=run"),
        ("notes", "choose a new folder"),
        (".hydra", "choose a new folder"),  # the user's: a run of this program makes the log first
    ],
)
def test_a_folder_of_a_run_can_be_resumed_and_another_folder_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    """The message did not offer `resume`, and a new run replaced the user's files in `.hydra`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        check_run_dir(["hydra.run.dir=run"])
    assert str(caught.value) == f"hydra.run.dir=run: exists and is not empty; {remedy}"


def test_a_folder_named_by_the_environment_works_with_a_users_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Hydra starts, an option from --config-dir is unknown. The check once refused it."""
    monkeypatch.setenv("WHERE", str(tmp_path / "run"))
    given = ["hydra.run.dir=${oc.env:WHERE}", "model=mine"]
    check_run_dir(given)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        check_run_dir(given)
    assert auto("resume=auto", *given) == ["model=mine", f"resume={tmp_path / 'run'}"]


@pytest.mark.parametrize("spelled", ["resume=auto", "resume='auto'", "++resume=auto"])
def test_resume_auto_starts_a_run_or_resumes_an_existing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["seed=3", spelled, "hydra.run.dir='a run'", "gpus=4"]
    begins = ["seed=3", "hydra.run.dir='a run'", "gpus=4"]
    assert auto(*given) == begins
    (tmp_path / "a run").mkdir()
    assert auto(*given) == begins
    (tmp_path / "a run" / "notes.txt").touch()
    assert auto(*given) == begins  # Hydra's check refuses it later, as without resume=auto
    (tmp_path / "a run" / "config.json").symlink_to("nowhere")  # resuming refuses it later
    assert auto(*given) == ["seed=3", "gpus=4", f'resume="{tmp_path / "a run"}"']


@pytest.mark.parametrize("given", [["resume=./auto"], ["resume=null"], ["seed=1"], ["~resume"]])
def test_overrides_without_resume_auto_do_not_change(given: list[str]) -> None:
    assert auto(*given) == given


@pytest.mark.parametrize(
    ("given", "sweep", "message"),
    [
        (["seed=1"], False, "resume=auto: needs the folder of the run; add hydra.run.dir"),
        (["hydra.sweep.dir=a"], False, "resume=auto: needs the folder of the run"),
        (["hydra.run.dir=a"], True, "resume=auto: is only for a single run; remove --multirun"),
        (["hydra.run.dir=[a]"], False, r"hydra.run.dir=\['a'\]: is not the name of a folder"),
        (
            ["hydra.run.dir=${oc.env:NO_SUCH_VARIABLE}"],
            False,
            "NO_SUCH_VARIABLE}: resume=auto cannot find out which folder this is; give its name",
        ),
    ],
)
def test_resume_auto_needs_a_folder_and_a_single_run(
    given: list[str], sweep: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        auto("resume=auto", *given, sweep=sweep)


@pytest.mark.parametrize(
    ("swept", "given", "found"),
    [
        ("local=dgl,infopro", "local.hidden=64", "local.hidden=choice(64)"),
        ("local=dgl,infopro", "local.cuts=[a,'b c']", "local.cuts=choice([a,'b c'])"),
        ("local=dgl,infopro", "+local.more=1", "+local.more=choice(1)"),
        ("experiment=a,b", "local.hidden=64", "local.hidden=choice(64)"),
        ("local=dgl,infopro", "optim.lr=1", "optim.lr=1"),
        ("local=dgl,infopro", "local.hidden=1,2", "local.hidden=1,2"),
        ("local=dgl,infopro", "local.loss=", "local.loss="),
        ("local=dgl,infopro", "~local.loss", "~local.loss"),
        ("experiment=a,b", "hydra.sweep.dir=there", "hydra.sweep.dir=there"),
        ("seed=1,2", "local.hidden=64", "local.hidden=64"),
    ],
)
def test_a_key_of_a_group_with_several_options_is_left_to_the_jobs(
    swept: str, given: str, found: str
) -> None:
    """Hydra also applied it to the default option, and refused a key that this does not have."""
    assert for_each_job([swept, given]) == [swept, found]


@pytest.mark.parametrize(
    ("given", "sweep", "warning"),
    [
        (["hydra.run.dir=a"], True, "hydra.run.dir=a has no effect with --multirun; give hydra.sw"),
        (["hydra.sweep.dir=a"], False, "hydra.sweep.dir=a has no effect without --multirun; give "),
        (["hydra.sweep.dir=a", "hydra.run.dir=b"], True, None),
        (["hydra.sweep.dir=a", "hydra.run.dir=b"], False, None),
        (["hydra.run.dir=a"], False, None),
        (["hydra.run.dir=a", "resume=b"], True, None),  # refused elsewhere
    ],
)
def test_a_folder_that_hydra_ignores_is_named(
    given: list[str], sweep: bool, warning: str | None
) -> None:
    """A sweep with `hydra.run.dir` wrote its results to another folder without a word."""
    found = ignored_folder(given, sweep=sweep)
    assert found == warning if warning is None else str(found).startswith(warning)
