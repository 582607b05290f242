"""What a user reads if Hydra cannot compose a configuration or start a run."""

import errno
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError

from ppll_cli.cli.arguments import searched
from ppll_cli.cli.explain import PLUGINS, explain


def test_the_folder_of_a_sweep_is_named() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/home/me/there/0")
    assert str(explain(error, ["--multirun", "seed=1,2", "hydra.sweep.dir=there"])) == (
        "hydra.sweep.dir=there: /home/me/there/0: Permission denied; "
        "give hydra.sweep.dir=FOLDER with a folder that you can write to"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "hydra.run.dir=there: Hydra cannot write into this folder: No space left on device; ",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "there"),
            "hydra.run.dir=there: Read-only file system; give",
        ),
    ],
)
def test_a_folder_that_cannot_be_filled_is_named(error: OSError, line: str) -> None:
    """The word `device` in the system's text was once taken for the key."""
    assert str(explain(error, ["device=cpu", "hydra.run.dir=there"])).startswith(line)


def test_a_resumed_run_whose_folder_is_read_only_cannot_have_another_one() -> None:
    error = OSError(errno.EROFS, "Read-only file system", "/home/me/there/ppll-run.log")
    assert str(explain(error, ["resume=there"])) == (
        "resume=there: /home/me/there/ppll-run.log: Read-only file system; "
        "make this folder writable, because the run continues there"
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a local method that lacks the key `modules`."""
    folder = tmp_path / "conf, mine"  # Hydra's grammar would read this name as two words
    (folder / "local").mkdir(parents=True)
    (folder / "local" / "wide.yaml").write_text("_target_: my_methods.Wide\nwidth: 64\n")
    return folder


@pytest.mark.parametrize("way", [["--config-dir=OWN"], ["--config-dir", "OWN"], ["-cd", "OWN"], []])
def test_keys_and_options_of_a_users_folder_are_known(own: Path, way: list[str]) -> None:
    """The message listed the keys of the program's default option, and not the user's options."""
    given = [each.replace("OWN", str(own)) for each in way] or searched(own)
    unknown = ConfigAttributeError("Key 'modules' is not in struct full_key: local.modules")
    line = str(explain(unknown, [*given, "local=wide", "local.modules=3"]))
    assert line.startswith("local.modules=3: there is no such key; it is a key of local=auglocal, ")
    assert line.endswith("; local has _target_, width")
    missing = MissingConfigException("Could not find 'local/wade'", "local/wade")
    assert "did you mean wide? there are auglocal, " in str(
        explain(missing, [*given, "local=wade"])
    )


def test_the_folder_of_a_users_option_is_asked_for() -> None:
    """A resumed sweep, for example, does not remember the folder."""
    missing = MissingConfigException("Could not find 'local/wide'", "local/wide")
    line = str(explain(missing, ["local=wide"]))
    assert line.endswith("; for an option of your own give --config-dir=FOLDER")


def test_a_missing_plugin_of_hydra_is_named_with_its_package() -> None:
    """The message said that the group has no options, and asked for a folder of the user's own."""
    page = Path(__file__).parents[2] / "docs" / "sweeps.md"
    for (group, name), package in PLUGINS.items():
        missing = MissingConfigException(f"Could not find '{group}/{name}'", f"{group}/{name}")
        line = str(explain(missing, ["--multirun", f"{group}={name}"]))
        assert line.startswith(f"{group}={name}: this plugin of Hydra is not installed; ")
        assert line.endswith(f" -m pip install {package}")
        assert f"| `{package}` |" in page.read_text()


def test_a_group_of_the_users_own_does_not_hide_the_message(own: Path) -> None:
    """Hydra adds it by `+`; without this sign it cannot be composed."""
    (own / "extra").mkdir()
    (own / "extra" / "foo.yaml").write_text("a: 1\n")
    unknown = ConfigAttributeError("Key 'dmi' is not in struct full_key: model.dmi")
    line = str(explain(unknown, [f"--config-dir={own}", "+extra=foo", "model.dmi=3"]))
    assert line.startswith("model.dmi=3: there is no such key; did you mean model.dim?")


def test_a_list_of_folders_that_cannot_be_parsed_is_told() -> None:
    given = ["hydra.searchpath=[a", "model.dmi=3"]
    unknown = ConfigAttributeError("Key 'dmi' is not in struct full_key: model.dmi")
    assert str(explain(unknown, given)).startswith("model.dmi=3: there is no such key")


def test_another_folder_in_place_of_the_programs_own_is_advised_against() -> None:
    """The message asked for an `__init__.py` in a package of the program."""
    missing = MissingConfigException("Primary config module 'ppll_cli.cli.mine' not found.", "own")
    line = str(explain(missing, ["--config-path=mine", "--config-name=own"]))
    remedy = "leave --config-path out: --config-dir=FOLDER adds a folder of configurations"
    assert line.endswith(f"; {remedy}")
