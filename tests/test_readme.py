"""README and its pages stay true: complete tables and real outputs."""

import re
from pathlib import Path

import pytest

from ppll_cli.config.commands import STARTED_AS
from ppll_cli.models.plain import PlainModel
from ppll_cli.models.unit import ImageSpec
from ppll_cli.models.vit import ViT
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.tasks.classification import Classification
from tests.cli.test_app import start
from tests.conftest import compose_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()


def expand(name: str) -> list[str]:
    """Expand braces as a shell does: `a{1,2}` becomes a1 and a2."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
    return [f"{found[1]}{part}{found[3]}" for part in found[2].split(",")] if found else [name]


def test_the_table_of_presets_is_complete() -> None:
    rows = re.findall(r"^\| `(\S+)` \|", (DOCS / "presets.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in expand(row)]
    files = (ROOT / "conf" / "experiment").glob("*.yaml")
    assert sorted(named) == sorted(path.stem for path in files)


def test_the_table_of_methods_is_complete() -> None:
    text = (DOCS / "local_learning.md").read_text()
    text = text[: text.index("## Momentum auxiliary networks")]
    rows = re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "conf" / "local").glob("*.yaml"))


def test_the_table_of_schedules_is_complete() -> None:
    text = (DOCS / "schedules.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml"))


def test_the_picture_of_1f1b_equals_that_in_its_docstring() -> None:
    picture = re.findall(r"^ *(stage \d \|.*)$", OneFOneB.__doc__ or "", re.MULTILINE)
    assert len(picture) == 3
    assert "\n".join(picture) in (DOCS / "schedules.md").read_text()


def test_the_loading_example_has_the_default_model() -> None:
    page = (DOCS / "run_directory.md").read_text()
    lines = page[page.index("units = ViT(") :].splitlines()[:2]
    names = {"ViT": ViT, "ImageSpec": ImageSpec, "Classification": Classification}
    scope: dict[str, object] = {**names, "PlainModel": PlainModel}
    exec("\n".join(lines), scope)
    config, _ = compose_config([])
    default = {key: config["model"][key] for key in ("dim", "depth", "heads", "patch")}
    model = scope["model"]
    assert isinstance(model, PlainModel)
    expected = PlainModel(ViT(**default).units(ImageSpec(1, 8, 8), Classification(10)))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}


@pytest.mark.parametrize(
    "group",
    ["model", "data", "schedule", "local", "partition", "optim", "fba", "transport", "tracker"],
)
def test_the_table_of_options_is_complete(group: str) -> None:
    lines = (DOCS / "options.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{group}` |"))
    named = set(re.findall(r"`([\w.]+)`", row.split("|")[2]))
    assert named == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}


def test_the_page_of_options_names_every_key() -> None:
    """Keys of other groups are on the pages of these groups."""
    config, _ = compose_config([])
    keys = {*config} | {f"optim.{key}" for key in config["optim"]} - {"optim.name"}
    named = {*re.findall(r"`([a-z_.]+)", (DOCS / "options.md").read_text())}
    assert sorted(keys - {name.removesuffix(".every") for name in named}) == []


def masked(output: str) -> list[str]:
    """Return the lines without parts that change from run to run: numbers, widths, progress."""
    lines = [re.sub(r"\d+(?:[.:,/-]\d+)*", "#", line) for line in output.splitlines()]
    lines = [re.sub(r"\s+", " ", line).strip() for line in lines]
    return [line for line in lines if line and " left" not in line]


def first_run(page: str) -> str:
    return page.split("\n$ scripts/run\n")[1].split("```")[0]


def test_the_tutorial_and_readme_show_the_same_first_run() -> None:
    assert masked(first_run((DOCS / "tutorial.md").read_text())) == masked(first_run(README))


@pytest.mark.slow
def test_the_shown_output_of_the_first_run_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All words are compared. The numbers are from the machine on which the run was made."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(STARTED_AS, "scripts/run")
    with start(cwd=tmp_path) as process:
        out, errors = process.communicate(timeout=350)
    assert process.returncode == 0, errors
    assert masked(first_run(README)) == [*masked(errors), *masked(out)]
