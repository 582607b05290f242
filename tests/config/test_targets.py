"""Objects that a configuration names by `_target_`."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hydra.core.hydra_config import HydraConfig
from torch import nn

from ppll_cli.config import targets
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError


class Options:
    """Has options of every kind."""

    def __init__(  # type: ignore[no-untyped-def]  # one option has no type
        self,
        *,
        count: int,
        rate: float = 0.5,
        on: bool = False,
        name: str = "",
        mode: Literal["a", "b"] = "a",
        limit: int | None = None,
        depth: int | list[int] = 1,
        anything=None,
    ) -> None:
        self.given = {
            "count": count,
            "rate": rate,
            "on": on,
            "name": name,
            "mode": mode,
            "limit": limit,
            "depth": depth,
            "anything": anything,
        }
        if count < 0:
            raise ConfigError("group.count", count, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class Base:
    width: int
    height: int = 1


class Child(Base):
    own: str

    def __init__(self, *, own: str, **base: Any) -> None:
        super().__init__(**base)
        object.__setattr__(self, "own", own)


class Grandchild(Child):
    pass


class Closed(Base):
    def __init__(self, *, own: str) -> None:
        super().__init__(width=3)


class Nothing:
    pass


class Undecorated(Base):
    depth: int


def function(*, count: int) -> int:
    return count * 2


def of(target: object, **options: object) -> Any:
    path = f"{target.__module__}.{target.__name__}" if isinstance(target, type) else target
    return make("group", {"_target_": path, **options})


def test_every_option_reaches_the_class() -> None:
    given = {
        "count": 3,
        "rate": 2,
        "on": True,
        "name": "x",
        "mode": "b",
        "limit": None,
        "depth": [1, 2],
        "anything": {"a": 1},
    }
    assert of(Options, **given).given == given


def test_options_with_defaults_may_be_left_out() -> None:
    assert of(Options, count=3).given["rate"] == 0.5
    assert isinstance(of(Nothing), Nothing)


def test_a_target_may_be_a_function() -> None:
    assert of(f"{__name__}.function", count=4) == 8


def refusal(target: object, **options: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        of(target, **options)
    return caught.value


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (None, "is not the dotted path of a class"),
        (3, "is not the dotted path of a class"),
        ("", "is not the dotted path of a class"),
        ("Options", "is not the dotted path of a class"),
        (".Options", "is not the dotted path of a class"),
        (".module.Options", "is not the dotted path of a class"),
        ("no_such_module.Options", "cannot be imported (No module named 'no_such_module')"),
        ("ppll_cli.errors.NoSuch", "cannot be imported (module 'ppll_cli.errors' has no attri"),
        ("ppll_cli.errors.", "cannot be imported (module 'ppll_cli.errors' has no attribute ''"),
        ("ppll_cli.__version__", "is not a class"),
    ],
)
def test_a_target_that_cannot_be_found_is_refused(path: object, problem: str) -> None:
    error = refusal(path)
    assert (error.key, error.value) == ("group._target_", path)
    assert error.problem.startswith(problem)


def test_a_missing_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^group\._target_=null: is not the dotted path"):
        make("group", {"count": 1})


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("count", "3", "must be a valid integer"),
        ("count", 3.0, "must be a valid integer"),
        ("count", True, "must be a valid integer"),
        ("count", None, "must be a valid integer"),
        ("rate", "0.5", "must be a valid number"),
        ("rate", True, "must be a valid number"),
        ("on", 1, "must be a valid boolean"),
        ("on", "true", "must be a valid boolean"),
        ("name", 3, "must be a valid string"),
        ("mode", "c", "must be 'a' or 'b'"),
        ("limit", "none", "must be a valid integer"),
        ("depth", [1, "2"], "must be a valid integer"),
        ("depth", "1", "must be a valid integer, or must be a valid list"),
    ],
)
def test_values_of_a_wrong_type_are_refused(key: str, value: object, problem: str) -> None:
    error = refusal(Options, **{"count": 1, key: value})
    assert (error.key, error.value) == (f"group.{key}", value)
    assert problem in error.problem


def test_a_value_that_is_no_plain_data_is_refused() -> None:
    assert str(refusal(Base, width=b"x")).endswith("a list or a dictionary")


def test_an_unknown_option_is_refused() -> None:
    error = refusal(Closed, own="x", width=3)
    assert str(error) == f"group.width=3: {__name__}.Closed has no such option; it has own"
    assert refusal(Nothing, width=3).remedy == "it has none"
    assert "@dataclass(frozen=True, kw_only=True)" in refusal(Undecorated, width=3, depth=1).remedy


def test_a_missing_option_is_refused() -> None:
    error = refusal(Options, rate=0.1)
    assert str(error) == f"group.count=: {__name__}.Options needs a value for it"


@pytest.mark.parametrize("kind", [Child, Grandchild])
def test_options_of_base_classes_are_accepted_and_checked(kind: type[Child]) -> None:
    made = of(kind, own="x", width=3)
    assert type(made) is kind
    assert (made.own, made.width, made.height) == ("x", 3, 1)
    assert refusal(kind, own="x").key == "group.width"
    assert refusal(kind, width=3).key == "group.own"
    assert refusal(kind, own="x", width="3").key == "group.width"
    assert refusal(kind, own="x", width=3, depth=1).remedy == "it has own, width, height"


def test_errors_of_the_class_name_the_option() -> None:
    assert str(refusal(Options, count=-1)) == "group.count=-1: must not be negative"


class Exits:
    """Ends the program, as a script does."""

    def __init__(self) -> None:
        sys.exit()


def test_a_class_cannot_end_the_program() -> None:
    with pytest.raises(ConfigError, match="constructing it raised SystemExit"):
        of(Exits)


class Odd:
    """Has options whose types YAML lacks, and one that only the class itself can check."""

    def __init__(self, *, size: tuple[int, int], folder: Path, module: nn.Module | None) -> None:
        self.size, self.folder, self.module = size, folder, module


def test_values_are_converted_to_the_annotated_types() -> None:
    """YAML has no tuples and no paths, so users write lists and text."""
    made = of(Odd, size=[1, 2], folder="here", module=None)
    assert (made.size, made.folder, made.module) == ((1, 2), Path("here"), None)
    assert refusal(Odd, size=[1], folder="here", module=None).key == "group.size"


def test_a_class_without_a_signature_is_refused() -> None:
    """A class written in C may have no signature. This once ended with a traceback."""
    with pytest.raises(ConfigError, match=r"^group\._target_=collections\.OrderedDict: cannot be"):
        make("group", {"_target_": "collections.OrderedDict"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory. It holds a module that must not be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(tmp_path))])
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)
    (tmp_path / "string.py").write_text("raise SystemExit('it ran')")
    return tmp_path


def test_the_current_directory_is_searched_last_and_only_for_a_users_class(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `dill.py` or `torch.py` in the current directory was once imported."""
    before = [*sys.path]
    make("group", {"_target_": "string.Formatter"})
    make("group", {"_target_": f"{__name__}.Child", "own": "x", "width": 3})
    with pytest.raises(ConfigError, match="cannot be imported"):
        make("group", {"_target_": "ppll_cli.models.nothing.Model"})
    assert sys.path == before
    (folder / "a_users_own.py").write_text("class Model: pass")
    make("group", {"_target_": "a_users_own.Model"})
    assert sys.path == [*before, str(folder)]
    monkeypatch.delitem(sys.modules, "a_users_own")


def test_a_users_class_is_searched_where_the_program_was_started(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hydra.job.chdir=true the current directory is the run directory."""
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    runtime = SimpleNamespace(cwd=str(folder))
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(runtime=runtime))
    monkeypatch.chdir(tmp_path_factory.mktemp("run"))
    (folder / "a_users_other.py").write_text("class Model: pass")
    make("group", {"_target_": "a_users_other.Model"})
    assert sys.path[-1] == str(folder)
    monkeypatch.delitem(sys.modules, "a_users_other")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ppll_cli", "ppll_cli.cli.plan"])
def test_modules_in_the_current_directory_are_not_imported(tmp_path: Path, module: str) -> None:
    """With `python -m`, Python searches the current directory first."""
    for name in ("hydra", "pydantic", "torch", "logging"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'a')")
    command = [sys.executable, "-m", module, "model.dim=x"]
    path = str(Path(targets.__file__).parents[2])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "model.dim=x: " in done.stderr
    assert not (tmp_path / "ran").exists()
