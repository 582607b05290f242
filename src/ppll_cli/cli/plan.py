"""ppll-plan: predict speed and memory of each schedule on each number of devices, before any run.

Slow imports are inside functions: `--help` and the checks that need neither the model nor the data
import no torch.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

from ppll_cli.cli.arguments import Parser, refuse_if_only_for_runs, script, searched
from ppll_cli.config.commands import key_of
from ppll_cli.config.composition import composed
from ppll_cli.config.settings import Settings, parse, usable_cores
from ppll_cli.config.targets import checked, make
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.limits import Count

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from rich.table import Table

    from ppll_cli.cli.planner import Row
    from ppll_cli.predict.speed import EdgeLoad

SCHEDULES = ("bp", "ll", "pp", "gpipe", "1f1b", "interleaved", "zb_h1", "ppll")
GPUS = (1, 2, 4, 8)
LISTED = 4
"""Largest number of edges (pairs of stages that exchange tensors) that are listed one by one."""

FEW = 2
"""Number of values that a cell can show. If there are more, the cell shows only the largest."""

DESCRIPTION = """\
Measures the units of a model, and predicts for each schedule and number of devices: samples per
second, bubble, speed-up over back-propagation on one device, memory, and traffic between stages.
"""
EPILOG = """\
Overrides and configuration groups are those of ppll-run. `gpus`, `schedule` and `replicas` may be
lists, as in `ppll-plan model=vit gpus=1,2,4,8,64 schedule=gpipe,ppll replicas=1,2`. Without
`replicas`, the tables show stages without replicas, and a line below each table gives the fastest
layout: the number of stages, and of replicas of each stage. Devices that this machine does not
have are simulated as equal to its own. Measured times are kept in your cache folder, where the next
plan finds them.

Several machines, of 8 devices each, on a network of 25 Gbit/s:

  ppll-plan gpus=8,64 --bandwidth=50e9 --per-machine=8 --network=3.1e9 --network-latency=2e-5

Exit status: 0 done; 2 wrong input (one line says what is wrong); 1 failed.
"""


def main() -> NoReturn:
    """Run the console script."""
    script("ppll-plan", _main)


def _main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    _show(Plan.compose(options.overrides), options)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="ppll-plan", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for ppll-run; gpus, schedule and replicas may have several values: gpus=1,2,4",
    )
    between_devices = "bytes per second of the link between two devices, in each direction "
    between_devices += "(default: messages take as long as copies on this machine)"
    between_machines = "bytes per second of a machine's link to other machines, in each direction"
    for name, kind, metavar, text in (
        ("--bandwidth", _positive, "BYTES", between_devices),
        ("--latency", _positive, "SECONDS", "latency of a message between two devices"),
        ("--per-machine", _count, "N", "number of devices of each machine (default: all)"),
        ("--network", _positive, "BYTES", between_machines),
        ("--network-latency", _positive, "SECONDS", "latency of a message between two machines"),
    ):
        parser.add_argument(name, type=kind, metavar=metavar, help=text)
    parser.add_config_dir()
    options = parser.parse_intermixed_args(arguments)
    if options.latency is not None and options.bandwidth is None:
        parser.error("--latency needs the --bandwidth of the same link")
    if options.network_latency is not None and options.network is None:
        parser.error("--network-latency needs --network, the bandwidth of the same link")
    if (options.network is None) != (options.per_machine is None):
        parser.error("--network and --per-machine must be given together")
    options.overrides += searched(options.config_dir)
    return options


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


@dataclass(frozen=True)
class Plan:
    """The runs whose speed is predicted: each schedule, for each number of devices and replicas.

    Attributes:
        gpus: Numbers of devices.
        replicas: Numbers of replicas of each stage; None if the fastest number is to be found.
        configs: The configuration of each schedule, by its name.
        choices: The chosen option of each configuration group.
    """

    gpus: tuple[int, ...]
    replicas: tuple[int, ...] | None
    configs: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, str]

    @classmethod
    def compose(cls, overrides: Sequence[str]) -> Self:
        """Make a plan from the overrides of a command line.

        Raises:
            ConfigError: A configuration cannot be composed, or its settings are wrong.
        """
        from ppll_cli.cli.explain import explain

        try:
            lists, given = _lists(overrides)
            configs, choices = _composed(given, [str(name) for name in lists["schedule"]])
        except Exception as error:
            raise explain(error, overrides, "ppll-plan") from None
        plan = cls(lists["gpus"], lists["replicas"] or None, configs, choices)
        for name, config in configs.items():
            for replicas in plan.replicas or (1,):
                fitting = (gpus for gpus in plan.gpus if gpus % replicas == 0)
                plan.settings(name, next(fitting, plan.gpus[0]), replicas)
            for group in ("schedule", "data"):  # these classes check arguments without torch
                make(group, config[group])
        return plan

    def settings(self, name: str, gpus: int, replicas: int = 1) -> Settings:
        """Return the settings of a run with the schedule `name`, on `gpus` devices.

        The devices are divided among `replicas` copies of the pipeline.

        If `threads` is not set, workers get equally many threads in all runs of the plan. For
        example, with 16 CPU cores and plans for 1, 2 and 4 devices, each worker gets 4 threads.

        Raises:
            ConfigError: A setting is wrong, or does not fit the others.
        """
        # Numbers of devices above the number of cores are ignored. If all are above it, each worker
        # gets one thread.
        config = self.configs[name]
        cores = usable_cores()
        largest = max((n for n in self.gpus if n <= cores), default=cores)
        threads = config["threads"] if config["threads"] is not None else max(1, cores // largest)
        return parse({**config, "gpus": gpus, "threads": threads, "replicas": replicas})


def _lists(overrides: Sequence[str]) -> tuple[dict[str, tuple[Any, ...]], list[str]]:
    from ppll_cli.config.overrides import parsed, text

    lists: dict[str, tuple[Any, ...]] = {"gpus": GPUS, "schedule": SCHEDULES, "replicas": ()}
    given, classes = [], []
    for override in parsed(overrides):
        key, value = override.key_or_group, override.get_value_string()
        remedy = "give the overrides of that run" if key == "resume" else "leave it out"
        refuse_if_only_for_runs(text(override), remedy)
        if key in lists and not override.is_delete():
            lists[key] = _values(override)
            if not lists[key]:
                raise ConfigError(key, "[]", "has no value", "give one value or several")
        elif override.is_sweep_override():
            problem = "ppll-plan takes several values only for gpus, schedule and replicas"
            raise ConfigError(key, value, problem, "give one value")
        else:
            given.append(text(override))
            classes += [value] * (key == "schedule._target_")
    if classes and len(lists["schedule"]) > 1:
        compared = ", ".join(map(str, lists["schedule"]))
        problem = f"ppll-plan compares {compared}, and this class would replace each of them"
        remedy = (
            "write a YAML file for the class in FOLDER/schedule and give --config-dir=FOLDER, or "
            "name one schedule, as in schedule=1f1b"
        )
        raise ConfigError("schedule._target_", classes[0], problem, remedy)
    for key in ("gpus", "replicas"):
        for number in lists[key]:
            try:
                checked(key, number, Count)
            except ConfigError as error:
                remedy = f"give whole numbers, as in {key}=1,2,4,8"
                raise ConfigError(key, number, error.problem, remedy) from None
    return lists, given


def _composed(
    overrides: Sequence[str], schedules: Sequence[str]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    configs: dict[str, Mapping[str, Any]] = {}
    shared = [each for each in overrides if not key_of(each).startswith("schedule.")]
    for name in schedules:
        configs[name], choices = composed([*shared, f"schedule={name}"])
    if len(shared) < len(overrides):
        # Some schedules have keys of their own, such as `schedule.chunks`. An override of such a
        # key is used only for these schedules.
        keys = {name: {f"schedule.{key}" for key in configs[name]["schedule"]} for name in configs}
        elsewhere = {name: set().union(*keys.values()) - keys[name] for name in keys}
        for name in schedules:
            given = [each for each in overrides if key_of(each) not in elsewhere[name]]
            configs[name], choices = composed([*given, f"schedule={name}"])
    return configs, choices


def _values(override: "Override") -> tuple[Any, ...]:
    values = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
    values = values if isinstance(values, list) else [values]
    # For some lists, Hydra returns numbers as text.
    found = (int(v) if isinstance(v, str) and v.isdecimal() else v for v in values)
    return tuple(dict.fromkeys(found))


def _show(plan: Plan, options: argparse.Namespace) -> None:
    from ppll_cli.leaves import forkserver

    forkserver.start()  # the server and this process import torch at the same time

    from rich.console import Console

    from ppll_cli.cli.planner import Planner
    from ppll_cli.observe.console import rich_console
    from ppll_cli.predict.interconnect import Interconnect, Link

    within = options.bandwidth and Link(options.bandwidth, options.latency or 0.0)
    between = options.network and Link(options.network, options.network_latency or 0.0)
    interconnect = Interconnect(within, between)
    console, waiting = rich_console(), Console(stderr=True)
    spinner = "line" if waiting.options.ascii_only else "dots"
    with (
        waiting.status("measuring units ...", spinner=spinner),
        Planner(
            plan.settings, list(plan.configs), plan.replicas, interconnect, options.per_machine
        ) as planner,
    ):
        tables = {gpus: (planner.rows(gpus), planner.fastest(gpus)) for gpus in plan.gpus}
        planner.check()
        notes = planner.notes(plan.gpus)
    console.print(planner.title(plan.choices))
    for gpus, (rows, fastest) in tables.items():
        console.print(_table(gpus, rows))
        for line in _told(fastest) if fastest else []:
            console.print(line)
    for note in notes:
        console.print(note)


def _table(gpus: int, rows: Mapping[str, "Row"]) -> "Table":
    from rich.table import Table

    known = {name: row for name, row in rows.items() if row.prediction is not None}
    best = max(known, key=lambda name: known[name].speed_up, default=None)
    wins = f": {best} wins, {known[best].speed_up:.2f} x bp" if best else ""
    columns = ["schedule", "samples/s", "bubble", "x bp", "stage ms"]
    columns += ["activations MB", "parameters MB", "edges MB/s"]
    recovers = any(row.prediction and any(row.prediction.recovery_bytes) for row in rows.values())
    columns += ["recovery MB"] * recovers
    table = Table(*columns, title=f"gpus={gpus}{wins}", title_justify="left")
    for column in table.columns:
        column.overflow = "fold"  # a narrow terminal must not cut off digits
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in rows.items():
        found = row.prediction
        if found is None:
            table.add_row(name, row.obstacle)
            continue
        table.add_row(
            name,
            f"{found.samples_per_second:.0f}",
            f"{found.bubble_fraction:.3f}",
            f"{row.speed_up:.2f}",
            _each(found.stage_s, lambda seconds: f"{1e3 * seconds:.0f}"),
            _each(found.activation_bytes, _mega),
            _each(found.parameter_bytes, _mega),
            _each([edge.bytes_per_batch / found.batch_s for edge in found.edges], _mega),
            *[_each(found.recovery_bytes, _mega) if any(found.recovery_bytes) else ""] * recovers,
            style="bold" if name == best else None,
        )
    return table


def _told(row: "Row") -> Iterator[str]:
    found = row.prediction
    assert found is not None
    layout = f"{row.stages} stage" + "s" * (row.stages > 1)
    layout += f" x {row.replicas} replicas" * (row.replicas > 1)
    layout += f" on {row.machines} machines" * (row.machines > 1)
    speed = f"{found.samples_per_second:.0f} samples/s, {row.speed_up:.2f} x bp"
    yield f"fastest layout: {row.schedule}, {layout}: {speed}"
    groups: dict[str, list[EdgeLoad]] = {}
    for edge in found.edges:
        where = "between machines" if edge.between_machines else "within a machine"
        name = (
            f"edge {edge.stages[0]} > {edge.stages[1]}" if len(found.edges) <= LISTED else "edges"
        )
        groups.setdefault(f"{name} {where}", []).append(edge)
    for name, edges in groups.items():
        most = max(edges, key=lambda edge: edge.bytes_per_batch)
        count, bound = ("", "") if len(edges) == 1 else (f"{len(edges)} ", "<= ")
        line = f"  {count}{name}: {bound}{_mega(most.bytes_per_batch)} MB a batch"
        line += f", {bound}{_mega(most.bytes_per_batch / found.batch_s)} MB/s"
        if busy := max(edge.busy_fraction or 0.0 for edge in edges):
            line += f", link busy {bound}{busy:.0%} of the time"
        yield line
    if found.averaged_bytes:
        size = _mega(found.averaged_bytes)
        yield f"  gradients: each replica sends {size} MB a batch for the average"


def _each(values: Sequence[float], text: Callable[[float], str]) -> str:
    if len(values) > FEW:
        return f"<= {text(max(values))}"
    return " / ".join(map(text, values))


def _mega(size: float) -> str:
    return f"{size / 1e6:.3g}"


if __name__ == "__main__":
    main()
