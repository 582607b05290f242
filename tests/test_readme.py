"""README stays true: its tables are complete, and its pictures are the program's."""

import json
import re
from pathlib import Path

import pytest

from ppll_cli.models.plain import PlainModel
from ppll_cli.models.unit import ImageSpec
from ppll_cli.models.vit import ViT
from ppll_cli.pipeline.schedules.one_f_one_b import OneFOneB
from ppll_cli.tasks.classification import Classification
from tests.conftest import compose_config

README = (Path(__file__).parents[1] / "README.md").read_text()


def expand(name: str) -> list[str]:
    """`a{1,2}` is a1 and a2, as in a shell."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
    return [f"{found[1]}{part}{found[3]}" for part in found[2].split(",")] if found else [name]


def test_the_table_of_presets_names_each_of_them() -> None:
    table = README[README.index("### Presets") :]
    rows = re.findall(r"^\| `(\S+)` \|", table, re.MULTILINE)
    named = [name for row in rows for name in expand(row)]
    conf = Path(__file__).parents[1] / "conf"
    assert sorted(named) == sorted(path.stem for path in (conf / "experiment").glob("*.yaml"))


def test_the_table_of_methods_names_each_of_them() -> None:
    table = README[README.index("## Local learning") : README.index("### What they learn")]
    rows = re.findall(r"^\| `(\S+)` \|", table, re.MULTILINE)
    conf = Path(__file__).parents[1] / "conf"
    assert sorted(rows) == sorted(path.stem for path in (conf / "local").glob("*.yaml"))


def test_the_picture_of_1f1b_is_that_of_its_docstring() -> None:
    picture = re.findall(r"^ *(stage \d \|.*)$", OneFOneB.__doc__ or "", re.MULTILINE)
    assert len(picture) == 3
    assert "\n".join(picture) in README


def test_the_model_of_the_loading_example_is_the_default_one() -> None:
    lines = README[README.index("units = ViT(") :].splitlines()[:2]
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
def test_the_table_names_every_option(group: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
    named = set(re.findall(r"`([\w.]+)`", row.split("|")[2]))
    conf = Path(__file__).parents[1] / "conf"
    assert named == {path.stem for path in (conf / group).glob("*.yaml")}


def test_accuracies_are_those_that_were_measured() -> None:
    """Of README and of the page, to the digits that they show."""
    docs = Path(__file__).parents[1] / "docs" / "benchmarks"
    measured = json.loads((docs / "accuracy.json").read_text())["rows"]
    table = README[README.index("### What they learn") : README.index("### Presets")]
    named = {"`local=fba` (no bank)": "fba off", "`fba=on`": "fba on", "back-propagation": "bp"}
    rows = re.findall(r"^\| ([^|]+) \| (0\.\d+) \|(.*)\|(.*)\|$", table, re.MULTILINE)
    assert len(rows) == 8
    for label, *cells in rows:
        method = named.get(label, label.strip("`"))
        for modules, cell in zip((1,) if method == "bp" else (2, 4, 8), cells, strict=False):
            assert cell.strip() == f"{measured[f'{method} {modules} trained']['accuracy']:.3f}"
    page = (docs / "accuracy.md").read_text()
    lines = re.findall(
        r"^\| (.+) \| (\d) \| (0\.\d+) \| (.+) \| .* \| (\d+) \| ", page, re.MULTILINE
    )
    assert len(lines) == 22
    for method, modules, accuracy, parameters, speed in lines:
        trained = measured[f"{method} {modules} trained"]
        assert (accuracy, parameters) == (
            f"{trained['accuracy']:.4f}",
            f"{trained['aux_params']:,}",
        )
        assert speed == f"{measured[f'{method} {modules} speed']['samples_per_second']:.0f}"


def test_speeds_are_those_that_were_measured() -> None:
    """Of the page, to the digits that it shows."""
    docs = Path(__file__).parents[1] / "docs" / "benchmarks"
    page = (docs / "speed.md").read_text()
    models = json.loads((docs / "schedules.json").read_text())["models"]
    ratios = re.findall(
        r"^\| (\w+) \| (\d\.\d\d) \| [\d.]* \| (\d\.\d\d) \| [\d.]* \|$", page, re.MULTILINE
    )
    assert len(ratios) == 6
    speeds = re.findall(r"^\| (\w+) \| ([\d.]+) \(.*\) \| ([\d.]+) \(.*\) \|$", page, re.MULTILINE)
    assert {name for name, *_ in speeds} == {*models["vit"]["samples_per_second"]}
    for number, found in enumerate(models.values(), 1):
        for row in ratios:
            assert row[number] == f"{found[row[0]]:.2f}"
        for row in speeds:
            assert row[number] == f"{found['samples_per_second'][row[0]]:.1f}"
    soak = json.loads((docs / "soak.json").read_text())
    assert f"{soak['runs']} runs with a random fault each" in page
    assert (soak["detected"], soak["recovered"], soak["leaks"]) == (soak["runs"], soak["runs"], 0)
