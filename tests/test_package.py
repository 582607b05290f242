"""The published package: the wheel, its metadata, and the citation."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import ppll_cli
from tests.conftest import compose_config

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAPERS = {
    "2411.12780": "Faster Multi-GPU Training with PPLL: A Pipeline Parallelism Framework "
    "Leveraging Local Learning",
    "2406.00446": "Advancing Supervised Local Learning Beyond Classification with Long-term "
    "Feature Bank",
}


def citation() -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "CITATION.cff"))
    return dict(found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Build the wheel. The build backend refuses unknown classifiers."""
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (file,) = folder.glob("*.whl")
    return ZipFile(file)


def test_the_wheel_has_code_options_and_py_typed(wheel: ZipFile) -> None:
    files = set(wheel.namelist())
    assert {"ppll_cli/py.typed", "ppll_cli/cli/app.py", "ppll_cli/conf/config.yaml"} <= files
    options = {f"ppll_cli/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert options <= files
    assert "ppll_cli/conf/__init__.py" in files  # without it, Hydra finds no module there
    others = {name for name in files if not name.startswith("ppll_cli/")}
    assert all(".dist-info/" in name for name in others)


def test_hydra_can_compose_from_options_in_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the wheel the options are in `ppll_cli.conf`.

    In a clone they are in `conf`, outside the package.
    """
    shutil.copytree(ROOT / "conf", tmp_path / "options_of_the_wheel")
    monkeypatch.syspath_prepend(str(tmp_path))
    with initialize_config_module("options_of_the_wheel", version_base="1.3"):
        found = compose("config", ["model=resnet32", "schedule=bp"])
    expected, _ = compose_config(["model=resnet32", "schedule=bp"])
    assert OmegaConf.to_container(found, resolve=True) == expected


def test_optional_libraries_are_extras() -> None:
    extras = PROJECT["optional-dependencies"]
    optional = {"wandb": "wandb", "tensorboard": "tensorboard", "detection": "pycocotools"}
    for extra, name in optional.items():
        assert [one.partition(">")[0] for one in extras[extra]] == [name]
        assert not any(one.startswith(name) for one in PROJECT["dependencies"])
    (every,) = extras["all"]
    ours = {"all", "docs", "test"}
    assert set(re.findall(r"\w+", every.partition("[")[2])) == {*extras} - ours
    assert {"ppll-run[all]", "ppll-run[docs]"} <= {*extras["test"]}
    assert 'set_up "[all]"' in (ROOT / "scripts" / "run").read_text()


def test_the_wheel_has_complete_metadata(wheel: ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = wheel.read(name).decode().split("\n\n")[0].splitlines()
    assert f"Version: {ppll_cli.__version__}" in lines
    assert "Author: the ppll-run authors" in lines
    assert "License-Expression: MIT" in lines
    assert "Classifier: Typing :: Typed" in lines
    assert any(line.startswith("Keywords: ") for line in lines)


def test_the_package_is_marked_as_typed() -> None:
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "src" / "ppll_cli" / "py.typed").is_file()
    assert PROJECT["authors"] == [{"name": "the ppll-run authors"}]


def test_the_citation_has_what_its_format_requires() -> None:
    cff = citation()
    assert cff["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cff.keys()
    assert cff["title"] == PROJECT["name"]
    assert cff["authors"] == PROJECT["authors"]
    assert cff["version"] == ppll_cli.__version__
    assert cff["license"] == PROJECT["license"]


@pytest.mark.parametrize("number", PAPERS)
def test_both_citations_of_a_paper_agree(number: str) -> None:
    """CITATION.cff and README's BibTeX have the same title, year and authors, in the same order."""
    (paper,) = [one for one in citation()["references"] if one["url"].endswith(number)]
    assert paper["title"] == PAPERS[number]
    assert paper["year"] == 2024
    assert paper["identifiers"] == [{"type": "other", "value": f"arXiv:{number}"}]
    readme = (ROOT / "README.md").read_text()
    (entry,) = [one for one in re.findall(r"@misc\{.*?\n\}", readme, re.DOTALL) if number in one]
    fields = dict(re.findall(r"(\w+) += \{((?:[^{}]|\{[^{}]*\})*)\}", entry))
    assert re.sub(r"[{}]", "", fields["title"]) == PAPERS[number]
    assert (fields["year"], fields["eprint"]) == ("2024", number)
    authors = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
    assert " ".join(fields["author"].split()).split(" and ") == authors
