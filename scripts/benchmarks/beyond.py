"""`scripts/benchmark beyond`: local learning for detection and super-resolution.

A small RetinaNet finds clothes in scenes painted with Fashion-MNIST, and a small EDSR enlarges
photographs by 2 and by 4. Each model is trained by back-propagation and, cut into 2 and into 4
modules, by local losses. The auxiliary networks are the task's smallest head (greedy), the Simple
Local Module (fba off), or the Simple Local Module with the feature bank (fba on). Detection also
has heads that train only the pyramid levels of a module's own stride (greedy, level), and MAN and
MAN++ with such heads (man, manpp). All rows of a case have equal numbers of training steps. In
detection with two modules, no earlier module can put features into a bank, so fba on and fba off
share one run.

Metrics are measured under `schedule=ll`, whose weights are bit-identical to those of `ppll`, in
several runs at the same time. Speed and memory are measured in short runs, one at a time: local
methods on two stages with one thread per worker, `bp` in one worker with one thread and with all
threads. The benchmark takes about two hours on two cores, and more with several `--seeds`;
`--length 0.1` trains on a tenth of the samples, and `--length 4` on four times as many. `--set
epochs=24` replaces a setting of all rows. Results with other lengths or settings have files of
their own.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from ppll_cli.config.commands import key_of
from ppll_cli.config.settings import usable_cores
from scripts.benchmarks.trials import (
    FOLDER,
    Found,
    Trial,
    Trials,
    add_options,
    averaged,
    cost,
    difference,
    megabytes,
    results_of,
    table,
)

METHODS = {
    "greedy": ("local=greedy",),
    "greedy, level": ("local=greedy", "local.detection_head=level"),
    "man": ("local=man",),
    "manpp": ("local=manpp",),
    "fba off": ("local=fba",),
    "fba on": ("fba=on",),
}
EVERY = ("bp", *METHODS)
NUMBERS = (2, 4)
COMMON = ("eval_every=1000", "timeline=false", "transport=ring")
ADAMW = (
    *("optim=adamw", "optim.lr=1e-3", "optim.schedule=cosine"),
    *("optim.warmup_epochs=0", "optim.weight_decay=0"),
)
TWO_STAGES = ("gpus=2", "partition=flops", "threads=1")
SPEED_STEPS = 40


@dataclass(frozen=True)
class Variant:
    """How the trainings of a table differ from the usual ones.

    Attributes:
        length: Multiplies the samples per epoch.
        settings: Overrides for all rows. They replace overrides with the same key.
    """

    length: float = 1
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the files with the results."""
        length = [] if self.length == 1 else [f"{self.length:g}"]
        return re.sub(r"[^\w.]+", "-", "-".join(["beyond", *length, *self.settings]))


USUAL = Variant()


@dataclass(frozen=True)
class Case:
    """A model, its data, and the length of training.

    Attributes:
        title: Heading of the case's tables.
        overrides: Overrides for all rows.
        length: The configuration key for the number of samples per epoch, and this number.
        cuts: The first unit of each module except module 0, by number of modules. The last module
            is never the head alone, because the features that the head reads would then be trained
            only for an auxiliary network.
        metrics: Heading and number format of each metric, by its key in the results. One column
            compares the first metric with that of bp.
        methods: Keys of `METHODS`.
        reference: A method without training (bicubic enlargement): its name, and for each metric
            the key under which results have its value; None if the case has no such method.
        brief: Further overrides for runs that measure speed and memory. With them, evaluations are
            short, and need no more memory than the training.
    """

    title: str
    overrides: tuple[str, ...]
    length: tuple[str, int]
    cuts: Mapping[int, tuple[str, ...]]
    metrics: Mapping[str, tuple[str, str]]
    methods: Sequence[str] = ("greedy", "fba off", "fba on")
    reference: tuple[str, Mapping[str, str]] | None = None
    brief: tuple[str, ...] = ("data.eval_limit=1",)

    def budget(self, variant: Variant = USUAL, seed: int = 0) -> tuple[str, ...]:
        """Return the overrides that all rows of a variant share."""
        key, samples = self.length
        length = f"{key}={round(samples * variant.length)}"
        usual = (f"seed={seed}", *COMMON, *self.overrides, length)
        replaced = {key_of(override) for override in variant.settings}
        return (*(each for each in usual if key_of(each) not in replaced), *variant.settings)


def super_resolution(scale: int, patch: int) -> Case:
    """Return the case of EDSR with 8 residual units of 32 channels.

    `scale` is the factor of the enlargement. `patch` is the height and width of training patches,
    in pixels of the small picture. Patches for x4 are smaller, because many small patches gave a
    better PSNR than few large patches that took equally long.
    """
    return Case(
        title=f"Super-resolution x{scale}",
        overrides=(
            *("model=edsr", "model.depth=8", "model.width=32"),
            *("data=photos", f"data.scale={scale}", f"data.patch={patch}"),
            *("batch_size=8", "epochs=4", *ADAMW),
        ),
        length=("data.patches_per_epoch", 4000),
        cuts={2: ("body.4",), 4: ("body.2", "body.4", "body.6")},
        metrics={"psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".4f")},
        reference=("bicubic", {"psnr": "bicubic_psnr", "ssim": "bicubic_ssim"}),
        # A tile has about as many pixels as a batch of patches for x2, and twice as many as a
        # batch for x4. EDSR and SSIM need 23 pixels of overlap.
        brief=("data.eval_limit=1", "data.overlap=23", "data.tile=68"),
    )


CASES = {
    "detection": Case(
        title="Detection",
        overrides=(
            *("model=retinanet", "model.depth=18", "model.width=64", "model.norm=group"),
            *("data=fashion_scenes", "batch_size=4", "epochs=2", *ADAMW),
        ),
        length=("data.pictures", 3000),
        cuts={2: ("layer3.0",), 4: ("layer2.0", "layer3.0", "layer4.0")},
        methods=tuple(METHODS),
        metrics={"ap": ("AP", ".3f"), "ap50": ("AP50", ".3f")},
    ),
    "x2": super_resolution(2, patch=24),
    "x4": super_resolution(4, patch=16),
}


@dataclass(frozen=True)
class Row:
    """A line of a case's table.

    Attributes:
        method: Key of `METHODS`, or "bp".
        modules: Number of modules; 1 for "bp".
        trained: For each seed, the run that measures the metrics.
        speed: The run that measures speed and memory.
    """

    method: str
    modules: int
    trained: tuple[Trial, ...]
    speed: Trial


def rows(name: str, variant: Variant = USUAL, seeds: Sequence[int] = (0,)) -> list[Row]:
    """Return the rows of a case: back-propagation, and each method with each number of modules."""
    case = CASES[name]

    def trained(label: str, *overrides: str) -> tuple[Trial, ...]:
        return tuple(
            Trial(
                f"{name} {label} trained" + (f" seed {seed}" if seed else ""),
                (*case.budget(variant, seed), *overrides),
            )
            for seed in seeds
        )

    bp = trained("bp", "schedule=bp", "gpus=1", "threads=1")
    found = [Row("bp", 1, bp, schedules(name, variant)["bp"])]
    for modules in case.cuts:
        for method in case.methods:
            local = _local(name, method, modules)
            label = f"{_same(name, method, modules)} {modules}"
            learning = trained(label, "schedule=ll", "gpus=1", "threads=1", *local)
            speed = (*_brief(name, case.budget(variant)), "schedule=ppll", *TWO_STAGES, *local)
            found.append(Row(method, modules, learning, Trial(f"{name} {label} speed", speed)))
    return found


def schedules(name: str, variant: Variant = USUAL) -> dict[str, Trial]:
    """Return the run that measures the speed of each schedule, by name.

    `ll` and `ppll` use fba on, with two modules.
    """
    brief = _brief(name, CASES[name].budget(variant))
    one = ("gpus=1", "threads=1")
    local = _local(name, "fba on", 2)
    chosen = {
        "bp": ("schedule=bp", *one),
        "bp, all threads": ("schedule=bp", "gpus=1", f"threads={usable_cores()}"),
        "ll": ("schedule=ll", *one, *local),
        "gpipe": ("schedule=gpipe", *TWO_STAGES),
    }
    found = {key: Trial(f"{name} {key} speed", (*brief, *each)) for key, each in chosen.items()}
    pipelined = (*brief, "schedule=ppll", *TWO_STAGES, *local)
    return {**found, "ppll": Trial(f"{name} {_same(name, 'fba on', 2)} 2 speed", pipelined)}


def _brief(name: str, budget: Sequence[str]) -> tuple[str, ...]:
    return (*budget, f"max_steps={SPEED_STEPS}", *CASES[name].brief)


def _same(name: str, method: str, modules: int) -> str:
    # In detection with two modules there is no earlier module whose features a bank could hold.
    return "fba off" if (name, method, modules) == ("detection", "fba on", 2) else method


def _local(name: str, method: str, modules: int) -> tuple[str, ...]:
    cuts = ",".join(CASES[name].cuts[modules])
    return (*METHODS[_same(name, method, modules)], f"local.cuts=[{cuts}]")


def main(arguments: Sequence[str]) -> None:
    """Run the trials that have no results yet; write and print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark beyond", description=__doc__)
    parser.add_argument(
        "--case", nargs="+", choices=CASES, default=list(CASES), help="only these cases"
    )
    parser.add_argument(
        "--length", type=float, default=1.0, help="multiplies the samples of each training"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all rows"
    )
    add_options(parser, EVERY, NUMBERS, seeds=[0])
    options = parser.parse_args(arguments)
    console = Console()
    variant = Variant(options.length, tuple(options.set))
    trials = Trials(variant.name, console.print)
    every = {name: rows(name, variant, options.seeds) for name in CASES}
    modules = (1, *options.modules)
    lines = {
        name: [
            row for row in every[name] if row.method in options.methods and row.modules in modules
        ]
        for name in options.case
    }
    if options.skip != "train":
        trained = [row.trained for each in lines.values() for row in each]
        trials.train(trained, results_of, options.jobs)
    if options.skip != "speed":
        for name, each in lines.items():
            speeds = schedules(name, variant).values()
            trials.make([*(row.speed for row in each), *speeds], cost)
    begun = [n for n in CASES if n in options.case or any(_begun(trials, row) for row in every[n])]
    text = "\n".join(markdown(trials, name, every[name], variant) for name in begun)
    (FOLDER / f"{variant.name}.md").write_text(text)
    console.print(text, markup=False)


def _begun(trials: Trials, row: Row) -> bool:
    return any(trials.find(trial) for trial in (*row.trained, row.speed))


def markdown(trials: Trials, name: str, lines: Sequence[Row], variant: Variant) -> str:
    """Return the two tables of a case with all results so far, in Markdown."""
    case = CASES[name]
    bp = [trials.find(trial) for trial in lines[0].trained]
    headings = [heading for heading, _ in case.metrics.values()]
    columns = ["method", "modules", *headings, f"{headings[0]} minus bp's", "auxiliary parameters"]
    columns += ["auxiliary FLOPs", "auxiliary time per stage", "peak memory per stage, MB"]
    columns.append("samples/s")
    cells = [_cells(case, trials, row, bp) for row in lines]
    if case.reference and any(bp):
        label, keys = case.reference
        known = [{m: each[key] for m, key in keys.items()} if each else None for each in bp]
        cells.insert(0, [label, "", *_reached(case, known, bp), *[""] * 5])
    found = {key: trials.find(trial) for key, trial in schedules(name, variant).items()}
    speeds = [[key, *_pace(each)] for key, each in found.items()]
    by_schedule = table(["schedule", "samples/s", "bubble"], speeds)
    return f"## {case.title}\n\n{table(columns, cells)}\n{by_schedule}"


def _cells(case: Case, trials: Trials, row: Row, bp: Sequence[Found | None]) -> list[str]:
    trained, speed = [trials.find(trial) for trial in row.trained], trials.find(row.speed)
    cells = [row.method, str(row.modules)]
    cells += _reached(case, trained, () if row.method == "bp" else bp)
    known = next((each for each in trained if each), None)
    share = f"{known['aux_flops'] / known['flops']:.0%} of the backbone" if known else ""
    cells += [f"{known['aux_params']:,}" if known else "", share]
    if speed is None:
        return [*cells, "", "", ""]
    shares = ("?" if share is None else f"{share:.0%}" for share in speed["aux_fraction"])
    rate, _ = _pace(speed)
    return [*cells, " / ".join(shares), megabytes(speed["peak_memory_bytes"]), rate]


def _reached(case: Case, found: Sequence[Found | None], bp: Sequence[Found | None]) -> list[str]:
    cells = [averaged(found, key, form) for key, (_, form) in case.metrics.items()]
    key, (_, form) = next(iter(case.metrics.items()))
    return [*cells, difference(found, bp, key, form)]


def _pace(found: Found | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    rate, bubble = found["samples_per_second"], found["bubble_fraction"]
    return "?" if rate is None else f"{rate:.1f}", "?" if bubble is None else f"{bubble:.2f}"
