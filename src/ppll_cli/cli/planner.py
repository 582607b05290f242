"""Measures a model once, and predicts its speed for many schedules and numbers of devices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from ppll_cli.config.settings import Settings, usable_cores
from ppll_cli.errors import ConfigError
from ppll_cli.job.devices import device_of, model_of
from ppll_cli.job.job import Job
from ppll_cli.job.schedule import schedule_of
from ppll_cli.leaves import cuda
from ppll_cli.pipeline.schedule import Schedule
from ppll_cli.predict.interconnect import Interconnect
from ppll_cli.predict.speed import Prediction, bp_batch_s, neighbours_of, predict
from ppll_cli.prepare.checks import check_plan, trials_of, try_units
from ppll_cli.prepare.preparation import assemble, profile_of
from ppll_cli.prepare.recovery import planned
from ppll_cli.prepare.subject import examine
from ppll_cli.prepare.trials import check_units


@dataclass(frozen=True)
class Row:
    """The prediction for a schedule on a number of devices, or the reason why there is none.

    Attributes:
        prediction: The prediction; None if an obstacle makes it impossible.
        speed_up: The predicted speed, divided by the speed of back-propagation by one worker with
            the same number of threads.
        obstacle: Why there is no prediction; empty if there is one.
        stages: Number of stages; 0 if there is no prediction.
        replicas: Number of replicas of each stage; 1 if there is no prediction.
        machines: Number of machines with workers; 1 if there is no prediction.
    """

    schedule: str
    prediction: Prediction | None
    speed_up: float = 0.0
    obstacle: str = ""
    stages: int = 0
    replicas: int = 1
    machines: int = 1


@dataclass(eq=False)
class Planner:
    """Measures the units of a model once, and predicts many schedules from the measurements.

    Use it in a `with` block. Another process measures the units; it ends with the block.

    Attributes:
        settings: A function that returns the settings of a run. Its arguments are the name of a
            schedule, the number of devices and the number of replicas.
        replicas: The numbers of replicas to predict for. If None, tables have only rows without
            replicas, and `fastest` tries every divisor of the number of devices.
        per_machine: Number of devices of each machine; None if one machine has all.
        neighbours: The largest number of other workers that compute at the same time on a worker's
            machine. If None, `neighbours_of` computes it.

    Raises:
        ConfigError: The settings do not fit the data, the model, one another or this machine.
    """

    settings: Callable[[str, int, int], Settings]
    schedules: Sequence[str]
    replicas: Sequence[int] | None = None
    interconnect: Interconnect = Interconnect()  # noqa: RUF009 - it is frozen
    per_machine: int | None = None
    neighbours: int | None = None

    def __post_init__(self) -> None:
        self.base = self.settings(self.schedules[0], 1, 1)
        if self.base.transport.get("wire_dtype") == "bf16":
            self.interconnect = replace(self.interconnect, bf16=True)
        self.device = device_of(self.base)
        self.subject = examine(self.base)
        check_units(self.base, self.subject)
        self.profile = profile_of(self.base, self.subject, self.device)
        self._rows: dict[tuple[str, int, int], Row] = {}
        self._beside: set[int] = set()
        self._unplanned: dict[tuple[str, int, str], list[int]] = {}
        self._tried: dict[frozenset[str], ConfigError | None] = {}
        self._errors: list[ConfigError] = []
        self._found = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.profile.close()

    @property
    def bp_samples_per_second(self) -> float:
        """Predicted samples per second of back-propagation by one worker on one device."""
        return self._bp(self.base.threads_per_worker)

    def rows(self, gpus: int) -> dict[str, Row]:
        """Return the rows of the table for `gpus` devices, by title.

        There is a row for each schedule and each number of replicas.
        """
        return {
            _title(name, replicas): self._row(name, gpus, replicas)
            for replicas in self.replicas or (1,)
            for name in self.schedules
        }

    def fastest(self, gpus: int) -> Row | None:
        """Return the row with the highest predicted speed; None if no prediction is possible."""
        layouts = self.replicas or [n for n in range(1, gpus + 1) if gpus % n == 0]
        rows = [self._row(name, gpus, n) for name in self.schedules for n in layouts]
        known = [row for row in rows if row.prediction is not None]
        return max(known, key=lambda row: row.speed_up, default=None)

    def check(self) -> None:
        """Raise the first error that prevented a prediction, if no prediction was possible so far.

        Raises:
            ConfigError: That error.
        """
        if self._errors and not self._found:
            raise self._errors[0]

    def title(self, choices: Mapping[str, str]) -> str:
        """Return a line that names the planned model, data set, batch size, precision and device.

        It ends with the number of threads of a worker. `choices` has the chosen options of the
        groups `model` and `data`, for example {"model": "vit", "data": "digits"}.
        """
        base = self.base
        where = model_of(self.device)
        parts = [f"model={choices['model']} ({len(self.subject.units)} units)"]
        parts += [f"data={choices['data']}", f"batch_size={base.batch_size}", base.precision]
        return f"{' '.join(parts)} on {where}, {base.threads_per_worker} thread(s) a worker"

    def notes(self, gpus: Sequence[int]) -> list[str]:
        """Return notes on how the tables for these numbers of devices were computed.

        Some notes say how to read the tables.
        """
        threads = self.base.threads_per_worker
        here = usable_cores() // threads if self.device == "cpu" else cuda.device_count()
        lines = [f"bp on one device: {self.bp_samples_per_second:.0f} samples/s"]
        if self.device == "cpu" and usable_cores() > threads:
            cores = usable_cores()
            lines[0] += f" with {threads} thread(s), {self._bp(cores):.0f} with all {cores} cores"
        beside = ", ".join(str(count) for count in sorted(self._beside - {0}))
        measured = "times of units were measured in one process alone"
        if beside:
            measured += " and, for stages that compute at the same time, beside "
            measured += f"{beside} other process(es)"
        lines.append(f"{measured}; they are medians of training steps on copies of the units")
        if beyond := [str(count) for count in gpus if count > max(1, here)]:
            lines.append(
                f"gpus={','.join(beyond)}: simulated as equal devices; this machine has {here}"
            )
        split = {
            f"{name} into {schedule.microbatches}"
            for name in self.schedules
            if (schedule := self._schedule(name)).microbatches > 1
        }
        if split:
            lines.append(
                f"some schedules split each batch ({', '.join(sorted(split))} micro-batches); if "
                "the model has BatchNorm, it uses the statistics of each micro-batch alone, so "
                "these schedules do not train the same model as the others"
            )
        if max(self.replicas or gpus) > 1:
            lines.append(
                "each replica trains on its share of a batch, and BatchNorm, if the model has any, "
                "uses the statistics of this share alone; the ring all-reduce of gradients is "
                "predicted to take as long as a copy of the bytes that it sends, or, if a link's "
                "bandwidth is given, to overlap with the backward passes"
            )
        if local := [name for name in self.schedules if self._schedule(name).local]:
            lines.append(f"schedules that train modules by local losses: {', '.join(local)}")
        return lines + self._without_recovery() + self._bounds(gpus)

    def _without_recovery(self) -> list[str]:
        return [
            f"{_title(name, replicas)} for gpus={','.join(map(str, gpus))} is predicted without "
            f"recover={self.base.recover.name}: {obstacle}"
            for (name, replicas, obstacle), gpus in self._unplanned.items()
        ]

    def _bounds(self, gpus: Sequence[int]) -> list[str]:
        others = [(name, f) for name, f in (("1f1b", 1), ("zb_h1", 3)) if name in self.schedules]
        if "ppll" not in self.schedules:
            return []
        lines = []
        for name, factor in others:
            parts = factor * self._schedule(name).microbatches
            shares = ", ".join(f"{(n - 1) / parts:.2f} for gpus={n}" for n in gpus if n > 1)
            if shares:
                lines.append(
                    f"if all stages take the same time, ppll is faster than {name} as long as the "
                    f"time of auxiliary networks, divided by the time of a stage's other work, is "
                    f"less than: {shares}"
                )
        return lines

    def _row(self, name: str, gpus: int, replicas: int) -> Row:
        key = name, gpus, replicas
        if key not in self._rows:
            try:
                self._rows[key] = self._make_row(*key)
            finally:
                self.profile.save()
        return self._rows[key]

    def _make_row(self, name: str, gpus: int, replicas: int) -> Row:
        if gpus % replicas:
            obstacle = "the devices cannot be divided evenly among the replicas"
            return Row(name, None, obstacle=obstacle)
        schedule = self._schedule(name)
        devices = (self.device,) * (replicas if schedule.one_stage else gpus)
        try:
            settings = self.settings(name, gpus, replicas)
            given = settings, self.subject, schedule, devices, self.profile, ""
            job = assemble(*given, notes=[])
            check_plan(job, self.subject)
            self._try_units(job)
            if self.per_machine is not None:
                homes = tuple(n // self.per_machine for n in range(len(devices)))
                job = replace(job, homes=homes)
            job, obstacle = planned(job, self.subject)
        except ConfigError as error:
            self._errors.append(error)
            if error.key == "gpus":
                stages = gpus // replicas
                what = "units" if stages > len(self.subject.units) else "modules"
                return Row(name, None, obstacle=f"more stages than {what}")
            return Row(name, None, obstacle=error.problem)
        if obstacle and job.local_learning and job.stages > 1:
            self._unplanned.setdefault((name, replicas, obstacle), []).append(gpus)
        self._found = True
        self._beside.add(neighbours_of(job) if self.neighbours is None else self.neighbours)
        found = predict(job, self.profile, self.interconnect, self.neighbours)
        return Row(
            name,
            found,
            found.samples_per_second / self.bp_samples_per_second,
            stages=job.stages,
            replicas=replicas,
            machines=len({*job.homes, 0}),
        )

    def _try_units(self, job: Job) -> None:
        trials = trials_of(job)
        if trials not in self._tried:
            self._tried[trials] = None
            try:
                try_units(job, self.subject)
            except ConfigError as error:
                self._tried[trials] = error
        if (refused := self._tried[trials]) is not None:
            raise refused

    def _schedule(self, name: str) -> Schedule:
        return schedule_of(self.settings(name, 1, 1).schedule)

    def _bp(self, threads: int) -> float:
        profile = self.profile.at(self.base.batch_size, threads=threads)
        return self.base.batch_size / bp_batch_s(len(self.subject.units), profile)


def _title(name: str, replicas: int) -> str:
    return name if replicas == 1 else f"{name}, {replicas} replicas"
