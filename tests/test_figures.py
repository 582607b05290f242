"""The figures in README and its pages are the measured ones, in the JSON files of benchmarks."""

import json
import re
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from scripts.benchmarks.accuracy import seconds_to_bp
from scripts.benchmarks.trials import averaged, difference, megabytes, paired
from tests.test_readme import DOCS, README


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """Return the cells of the tables of a page in docs/benchmarks, by heading."""
    found: dict[str, list[list[str]]] = {}
    for section in (DOCS / "benchmarks" / page).read_text().split("\n## ")[1:]:
        lines = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)[2:]
        found[section.partition("\n")[0]] = [
            [cell.strip() for cell in line.split("|")] for line in lines
        ]
    return found


def results_of(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "benchmarks" / file).read_text())["rows"]
    return found


def by_seed(rows: Mapping[str, Any], name: str) -> list[dict[str, Any] | None]:
    """Return the results of each seed of a row; None if a seed was not trained."""
    return [rows.get(f"{name} seed {seed}") for seed in range(3)]


def cells_of(found: Sequence[Any], bp: Sequence[Any]) -> list[str]:
    """Return accuracy, difference to `bp`, auxiliary parameters and auxiliary FLOPs, as shown."""
    first = next(filter(None, found))
    return [
        averaged(found, "accuracy", ".4f"),
        "" if found == bp else difference(found, bp, "accuracy", ".4f"),
        f"{first['aux_params']:,}",
        f"{first['aux_flops'] / first['flops']:.0%}",
    ]


def seconds_of(found: Sequence[Any], bp: Sequence[Any], speed: Mapping[str, Any]) -> str:
    """Return the seconds until the accuracy of `bp` less one point, as shown."""
    seconds = seconds_to_bp(paired(found, bp), speed["samples_per_second"])
    return "not reached" if seconds is None else f"{seconds:.0f}"


SHORT, LONG, LONG_SIXTEEN, SIXTEEN = (
    "One short epoch, with two, four and eight modules",
    "Four epochs of the whole training set",
    "Four epochs with sixteen modules",
    "Sixteen modules, other lags and other loss weights",
)
LOCAL = ("dgl", "fba off", "fba on", "auglocal")
"""The methods whose range README gives."""


def test_accuracies_in_the_docs_are_the_measured_ones() -> None:
    """The first table of the page, the table of local methods, and README's range."""
    rows = results_of("accuracy.json")
    bp = by_seed(rows, "resnet20 bp 1")
    lines = tables_of("accuracy.md")[SHORT]
    trained = {name.rsplit(" seed ", 1)[0] for name in rows if " seed " in name}
    assert {f"resnet20 {method} {modules}" for method, modules, *_ in lines} == trained
    for method, modules, seeds, *shown in lines:
        name = f"resnet20 {method} {modules}"
        found, speed = by_seed(rows, name), rows[f"{name} speed"]
        assert int(seeds) == sum(each is not None for each in found)
        assert shown == [
            *cells_of(found, bp),
            f"{speed['samples_per_second']:.0f}",
            megabytes(speed["peak_memory_bytes"]),
            seconds_of(found, bp, speed),
        ]
    named = {"`local=fba` (no bank)": "fba off", "`fba=on`": "fba on", "back-propagation": "bp"}
    table = (DOCS / "local_learning.md").read_text()
    shorter = re.findall(r"^\| ([^|]+) \| (0\.\d+) \|(.*)\|(.*)\|$", table, re.MULTILINE)
    assert len(shorter) == 10
    for label, *cells in shorter:
        method = named.get(label, label.replace("`", ""))
        for count, cell in zip((1,) if method == "bp" else (2, 4, 8), cells, strict=False):
            found = by_seed(rows, f"resnet20 {method} {count}")
            assert cell.strip() == f"{mean(each['accuracy'] for each in found if each):.3f}"
    of = {method: by_seed(rows, f"resnet20 {method} 4") for method in LOCAL}
    reached = [mean(each["accuracy"] for each in found if each) for found in of.values()]
    text = " ".join(README.split())
    assert f"{mean(each['accuracy'] for each in bp if each):.3f} by back-propagation" in text
    assert f"and {min(reached):.2f} to {max(reached):.2f} by `dgl`, `fba` and `auglocal`" in text


def test_accuracies_after_longer_trainings_are_the_measured_ones() -> None:
    """The page has each row of the file, and README the range with four modules."""
    rows, speeds = results_of("accuracy-epochs.json"), results_of("accuracy.json")
    bp = by_seed(rows, "resnet20 bp 1")
    lines = tables_of("accuracy.md")[LONG]
    trained = {name.rsplit(" seed ", 1)[0] for name in rows}
    assert {f"resnet20 {method} {modules}" for method, modules, *_ in lines} == {
        name for name in trained if name.startswith("resnet20")
    }
    sixteen = tables_of("accuracy.md")[LONG_SIXTEEN]
    assert len(lines) + len(sixteen) == len(trained)
    for method, modules, seeds, *shown in sixteen:
        found = by_seed(rows, f"resnet32 {method} {modules}")
        assert int(seeds) == sum(each is not None for each in found)
        assert shown == cells_of(found, by_seed(rows, "resnet32 bp 1"))
    for method, modules, seeds, *shown in lines:
        name = f"resnet20 {method} {modules}"
        found = by_seed(rows, name)
        assert int(seeds) == sum(each is not None for each in found)
        assert shown == [*cells_of(found, bp), seconds_of(found, bp, speeds[f"{name} speed"])]
    four = {name.rsplit(" seed ", 1)[0] for name in rows if " 4 seed " in name}
    reached = [mean(each["accuracy"] for each in by_seed(rows, n) if each) for n in four]
    text = " ".join(README.split())
    ours = mean(each["accuracy"] for each in bp if each)
    assert f"{ours:.3f} by back-propagation, and {min(reached):.3f} to {max(reached):.3f}" in text


def test_accuracies_with_sixteen_modules_are_the_measured_ones() -> None:
    """The page has each row of the file."""
    rows = results_of("accuracy-modules.json")
    lines = tables_of("accuracy.md")[SIXTEEN]
    assert len(lines) == len({name.rsplit(" seed ", 1)[0] for name in rows})
    for of, method, *shown in lines:
        model, modules = of.split(", ")
        found = by_seed(rows, f"{model} {method} {modules}")
        assert None not in found
        assert shown == cells_of(found, by_seed(rows, f"{model} bp 1"))


def test_detection_over_three_seeds_is_the_measured_one() -> None:
    page = (DOCS / "benchmarks" / "beyond.md").read_text().partition("## Super-resolution")[0]
    short, longer = page.split("### Four times as many scenes")
    for text, file, methods in ((short, "beyond.json", 5), (longer, "beyond-4.json", 3)):
        lines = re.findall(
            r"^\| (.+) \| (\d) \| (.+ ± .+) \| (.+ ± .+) \|(.*)\|$", text, re.MULTILINE
        )
        assert len(lines) == methods
        rows = results_of(file)
        bp = seeds_of(rows, "detection bp")
        for method, modules, *shown, gap in lines:
            found = seeds_of(rows, f"detection {method}" + f" {modules}" * (method != "bp"))
            assert shown == [averaged(found, metric, ".3f") for metric in ("ap", "ap50")]
            assert gap.strip() == ("" if method == "bp" else difference(found, bp, "ap", ".3f"))


def test_detection_with_more_scenes_or_epochs_is_the_measured_one() -> None:
    """In these tables, the first column has the number of scenes or of epochs."""
    page = (DOCS / "benchmarks" / "beyond.md").read_text().partition("## Super-resolution")[0]
    lines = re.findall(r"^\| ([\d,]+) \| (0\..+)\|$", page, re.MULTILINE)
    files = {"3,000": "beyond", "12,000": "beyond-4", "24,000": "beyond-8"}
    files |= {epochs: f"beyond-500-{epochs}" for epochs in ("24", "48", "96")}
    assert [number for number, _ in lines] == [*files]
    for number, cells in lines:
        rows = results_of(f"{files[number]}.json")
        found = [rows.get(f"detection {method} trained") for method in ("bp", "manpp 4")]
        shown = [f"{row[metric]:.3f}" if row else "" for row in found for metric in ("ap", "ap50")]
        shown.append(f"{found[1]['ap'] / found[0]['ap']:.0%}" if found[0] and found[1] else "")
        assert [cell.strip() for cell in cells.split("|")] == shown


def test_the_rise_of_ap50_with_the_epochs_is_the_measured_one() -> None:
    page = (DOCS / "benchmarks" / "beyond.md").read_text()
    files = [f"beyond-500-{epochs}.json" for epochs in (24, 48, 96)]
    short, longer, longest = (results_of(file)["detection bp trained"]["ap50"] for file in files)
    assert f"the AP50 of `bp` rose by {longer - short:.3f}," in page
    assert f"from 48 to 96 epochs by {longest - longer:.3f}." in page


def seeds_of(rows: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [rows[f"{name} trained{end}"] for end in ("", " seed 1", " seed 2")]


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
    assert f"The benchmark made {soak['runs']} runs, each with a fault" in page
    faults = soak["faults_injected"]
    assert f"The other {faults} faults were detected" in page
    assert (soak["detected"], soak["recovered"], soak["leaks"]) == (faults, faults, 0)


def test_the_guide_to_schedules_has_the_right_bounds() -> None:
    page = (DOCS / "which_schedule.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (0\.\d\d) \| (0\.\d\d) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for stages, parts, *bounds in rows:
        share = (int(stages) - 1) / int(parts)
        assert bounds == [f"{share:.2f}", f"{share / 3:.2f}"]


def test_the_guide_to_schedules_has_the_counted_shares() -> None:
    page = (DOCS / "which_schedule.md").read_text()
    measured = results_of("accuracy.json")
    methods = re.findall(r"`(\w+)`", next(re.finditer(r"^\| modules \|.*$", page, re.M))[0])
    rows = re.findall(r"^\| (\d) \|((?: \d+% \|)+)$", page, re.MULTILINE)
    assert [modules for modules, _ in rows] == ["2", "4", "8"]
    for modules, cells in rows:
        for method, cell in zip(methods, re.findall(r"\d+%", cells), strict=True):
            name = "fba off" if method == "fba" else method
            found = measured[f"resnet20 {name} {modules} seed 0"]
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
    vit_ddp, vit_ppll, resnet_ddp, resnet_ppll = speeds
    text = " ".join(README.split())
    assert f"trained a ViT at {vit_ddp} samples/s and a ResNet-32 at {resnet_ddp};" in text
    assert f"`ppll` trained them at {vit_ppll} and {resnet_ppll}." in text
