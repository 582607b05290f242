"""README and its pages stay true: complete tables, real outputs, measured figures."""

import json
import re
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

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


def test_accuracies_in_the_docs_are_the_measured_ones() -> None:
    """The figures of both pages and of README are compared, rounded as they are shown."""
    docs = DOCS / "benchmarks"
    measured = json.loads((docs / "accuracy.json").read_text())["rows"]
    table = (DOCS / "local_learning.md").read_text()
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


Results = list[dict[str, Any]]


def results_by_seed(file: str) -> dict[str, Results]:
    """Return the results of each training, without its seed in the name, by seed."""
    found: dict[str, Results] = {}
    for name, result in json.loads((DOCS / "benchmarks" / file).read_text())["rows"].items():
        found.setdefault(name.rsplit(" seed ", 1)[0], []).append(result)
    return found


def cells_of(found: Results, bp: Results) -> list[str]:
    """Return accuracy, difference to `bp`, auxiliary parameters and auxiliary FLOPs, as shown."""
    reached = [result["accuracy"] for result in found]
    gap = mean(reached) - mean(result["accuracy"] for result in bp)
    first = found[0]
    return [
        f"{mean(reached):.4f} ± {stdev(reached):.4f}",
        "" if found is bp else f"{gap:+.4f}",
        f"{first['aux_params']:,}",
        f"{first['aux_flops'] / first['flops']:.0%}",
    ]


def lines_with_means() -> list[list[str]]:
    """Return the cells of the lines on the page that have the mean of several seeds."""
    page = (DOCS / "benchmarks" / "accuracy.md").read_text()
    lines = [line for line in page.splitlines() if re.match(r"\|.* 0\.\d+ ± ", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_mean_accuracies_in_the_docs_are_the_measured_ones() -> None:
    """The figures of four modules are compared, and those of README."""
    measured = results_by_seed("accuracy-seeds.json")
    lines = [cells for cells in lines_with_means() if len(cells) == 7]
    assert len(lines) == 8
    bp = measured["resnet20 bp 1"]
    of = {}
    for method, seeds, *shown in lines:
        found = bp if method == "bp" else measured[f"resnet20 {method} 4"]
        assert len(found) == int(seeds)
        assert [*shown[:2], *shown[3:]] == cells_of(found, bp)
        heads = zip(*(result["module_tests"] for result in found), strict=True)
        tests = [f"{mean(test['accuracy'] for test in head):.3f}" for head in heads]
        assert shown[2] == ("" if method == "bp" else " / ".join(tests))
        of[method] = mean(result["accuracy"] for result in found)
    local = [of[method] for method in ("dgl", "fba off", "fba on", "auglocal")]
    text = " ".join(README.split())
    assert f"{of['bp']:.3f} by back-propagation" in text
    assert f"and {min(local):.2f} to {max(local):.2f} by `dgl`, `fba` and `auglocal`" in text


def test_accuracies_with_more_modules_are_the_measured_ones() -> None:
    """The page has each row of the file."""
    measured = results_by_seed("accuracy-modules.json")
    lines = [cells for cells in lines_with_means() if len(cells) == 6]
    assert len(lines) == len(measured)
    for of, method, *shown in lines:
        model, modules = of.split(", ")
        found = measured[f"{model} {method} {modules}"]
        assert len(found) == 3
        assert shown == cells_of(found, measured[f"{model} bp 1"])


def test_accuracies_after_longer_trainings_are_the_measured_ones() -> None:
    """The page has each row of the file, and README the range."""
    measured = results_by_seed("accuracy-epochs.json")
    lines = [cells for cells in lines_with_means() if len(cells) == 5]
    assert len(lines) == len(measured)
    bp = measured["resnet20 bp 1"]
    for method, *shown in lines:
        found = bp if method == "bp" else measured[f"resnet20 {method} 4"]
        assert len(found) == 3
        assert shown == cells_of(found, bp)
    reached = {name: mean(r["accuracy"] for r in found) for name, found in measured.items()}
    local = [accuracy for name, accuracy in reached.items() if name != "resnet20 bp 1"]
    text = " ".join(README.split())
    found_by = f"{min(local):.3f} to {max(local):.3f}"
    said = f"{reached['resnet20 bp 1']:.3f} by back-propagation, and {found_by}"
    assert said in text


def test_speeds_in_the_docs_are_the_measured_ones() -> None:
    """The figures of the page are compared, rounded as they are shown."""
    docs = DOCS / "benchmarks"
    page = (docs / "speed.md").read_text()
    models = json.loads((docs / "schedules.json").read_text())["models"]
    ratios = re.findall(
        r"^\| (\w+) \| (\d\.\d\d) \| [\d.]* \| (\d\.\d\d) \| [\d.]* \|$", page, re.MULTILINE
    )
    assert len(ratios) == 10
    speeds = re.findall(r"^\| (\w+) \| ([\d.]+) \(.*\) \| ([\d.]+) \(.*\) \|$", page, re.MULTILINE)
    assert {name for name, *_ in speeds} == {*models["resnet32"]["samples_per_second"]}
    for number, found in enumerate(models.values(), 1):
        for row in ratios:
            assert row[number] == f"{found[row[0]]:.2f}"
        for row in speeds:
            assert row[number] == f"{found['samples_per_second'][row[0]]:.1f}"
    soak = json.loads((docs / "soak.json").read_text())
    assert f"{soak['runs']} runs with a random fault each" in page
    assert (soak["detected"], soak["recovered"], soak["leaks"]) == (soak["runs"], soak["runs"], 0)


def test_the_guide_to_schedules_has_the_right_bounds() -> None:
    page = (DOCS / "which_schedule.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (0\.\d\d) \| (0\.\d\d) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for stages, parts, *bounds in rows:
        share = (int(stages) - 1) / int(parts)
        assert bounds == [f"{share:.2f}", f"{share / 3:.2f}"]


def test_the_guide_to_schedules_has_the_counted_shares() -> None:
    page = (DOCS / "which_schedule.md").read_text()
    measured = json.loads((DOCS / "benchmarks" / "accuracy.json").read_text())["rows"]
    methods = re.findall(r"`(\w+)`", next(re.finditer(r"^\| modules \|.*$", page, re.M))[0])
    rows = re.findall(r"^\| (\d) \|((?: \d+% \|)+)$", page, re.MULTILINE)
    assert [modules for modules, _ in rows] == ["2", "4", "8"]
    for modules, cells in rows:
        for method, cell in zip(methods, re.findall(r"\d+%", cells), strict=True):
            name = "fba off" if method == "fba" else method
            found = measured[f"{name} {modules} trained"]
            assert cell == f"{found['aux_flops'] / found['flops']:.0%}", (method, modules)


def test_speeds_over_slow_links_are_the_measured_ones() -> None:
    """The figures are README's first table, and the speeds on one machine below it."""
    measured = json.loads((DOCS / "benchmarks" / "network.json").read_text())["models"]
    named = {
        "`schedule=ppll`": "ppll",
        "`schedule=gpipe`": "gpipe",
        "`schedule=1f1b`": "1f1b",
        "`schedule=bp replicas=2`": "bp, 2 replicas",
        "torch's `DistributedDataParallel`": "ddp",
    }
    rows = re.findall(
        r"^\| ([^|]+) \| (\d+) \| (0\.\d\d) \| (\d+) \| (0\.\d\d) \|$", README, re.MULTILINE
    )
    assert {name for name, *_ in rows} == {*named}
    for name, *cells in rows:
        for model, (alone, left) in zip(("vit", "resnet32"), (cells[:2], cells[2:]), strict=True):
            found = measured[model][named[name]]["samples_per_second"]
            speed = {link: median(speeds) for link, speeds in found.items()}
            assert alone == f"{speed['one machine']:.0f}"
            assert left == f"{speed['200 Mbit/s'] / speed['one machine']:.2f}"
    links = (measured["vit"][row]["samples_per_second"]["200 Mbit/s"] for row in ("ppll", "ddp"))
    ppll, ddp = (f"{median(speeds):.0f}" for speeds in links)
    sentence = f"`ppll` trains {ppll} samples/s over the link, and torch's data parallelism {ddp}."
    assert sentence in " ".join(README.split())
    models = json.loads((DOCS / "benchmarks" / "schedules.json").read_text())["models"]
    speeds = [
        f"{models[model]['samples_per_second'][row]:.0f}"
        for model in ("vit", "resnet32")
        for row in ("ddp", "ppll")
    ]
    ddp, ppll, *others = speeds
    text = " ".join(README.split())
    assert f"{ddp} samples/s against `ppll`'s {ppll} on a ViT" in text
    assert f", {' against '.join(others)} on a ResNet-32" in text


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
