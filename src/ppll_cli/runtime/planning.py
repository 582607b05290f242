"""Predictions for many schedules and numbers of devices, from one profile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ppll_cli.errors import ConfigError
from ppll_cli.machine import processor
from ppll_cli.runtime.devices import device_of
from ppll_cli.runtime.predict import Link, Prediction, bp_batch_s, neighbours_of, predict
from ppll_cli.runtime.prepare import assemble, profile_of
from ppll_cli.runtime.subject import examine
from ppll_cli.schedules.schedule import Schedule
from ppll_cli.settings import Settings, usable_cores
from ppll_cli.targets import make


@dataclass(frozen=True)
class Row:
    """What is expected of a schedule on so many devices.

    Attributes:
        prediction: None where there is none.
        speed_up: Over back-propagation on one device, with the same threads.
        obstacle: Why there is none.
    """

    prediction: Prediction | None
    speed_up: float = 0.0
    obstacle: str = ""


class Planner:
    """Measures the units of a model once, and predicts from that.

    Args:
        settings: Of a run, by the name of its schedule, the number of devices and that of replicas.
        schedules: Names of the schedules.
        link: What carries messages between stages; None copies them on the device.
        replicas: How many copies of every stage, each of them.

    Raises:
        ConfigError: The settings do not fit the data, the model, one another or this machine.
    """

    def __init__(
        self,
        settings: Callable[[str, int, int], Settings],
        schedules: Sequence[str],
        link: Link | None = None,
        replicas: Sequence[int] = (1,),
    ) -> None:
        self.settings, self.schedules, self.link = settings, schedules, link
        self.replicas = replicas
        self.base = settings(schedules[0], 1, 1)
        self.device = device_of(self.base)
        self.subject = examine(self.base)
        self.profile = profile_of(self.base, self.subject, self.device)
        self._beside: set[int] = set()
        self._errors: list[ConfigError] = []
        self._found = False

    @property
    def bp_samples_per_second(self) -> float:
        """Of back-propagation on one device, with the same threads."""
        return self._bp(self.base.threads_per_worker)

    def rows(self, gpus: int) -> dict[str, Row]:
        """What is expected of each schedule, with each number of replicas."""
        try:
            return {
                name if replicas == 1 else f"{name}, {replicas} replicas": self._row(
                    name, gpus, replicas
                )
                for replicas in self.replicas
                for name in self.schedules
            }
        finally:
            self.profile.save()

    def check(self) -> None:
        """Whether anything could be predicted.

        Raises:
            ConfigError: Nothing; this is the first obstacle.
        """
        if self._errors and not self._found:
            raise self._errors[0]

    def title(self, choices: Mapping[str, str]) -> str:
        """What is planned, on what."""
        base = self.base
        where = processor() if self.device == "cpu" else torch.cuda.get_device_name(self.device)
        parts = [f"model={choices['model']} ({len(self.subject.units)} units)"]
        parts += [f"data={choices['data']}", f"batch_size={base.batch_size}", base.precision]
        return f"{' '.join(parts)} on {where}, {base.threads_per_worker} thread(s) a worker"

    def notes(self, gpus: Sequence[int]) -> list[str]:
        """How the tables came about, and how to read them."""
        threads = self.base.threads_per_worker
        here = usable_cores() // threads if self.device == "cpu" else torch.cuda.device_count()
        lines = [f"bp on one device: {self.bp_samples_per_second:.0f} samples/s"]
        if self.device == "cpu" and usable_cores() > threads:
            cores = usable_cores()
            lines[0] += f" with {threads} thread(s), {self._bp(cores):.0f} with all {cores}"
        beside = ", ".join(str(count) for count in sorted(self._beside - {0}))
        measured = "units were measured alone"
        if beside:
            measured += f" and, for stages that compute side by side, beside {beside} process(es)"
        lines.append(f"{measured}; medians of training steps on copies")
        if beyond := [str(count) for count in gpus if count > max(1, here)]:
            lines.append(f"gpus={','.join(beyond)}: simulated as equal devices; here are {here}")
        split = {
            f"{name} into {schedule.microbatches}"
            for name in self.schedules
            if (schedule := self._schedule(name)).microbatches > 1
        }
        if split:
            lines.append(
                f"batches are split by {', '.join(sorted(split))}: BatchNorm, if the model has "
                "any, sees micro-batches, and so another model is trained"
            )
        if max(self.replicas) > 1:
            lines.append(
                "replicas: an all-reduce is reckoned as long as it takes to copy, or to send, what "
                "it moves, and as nothing that another computation hides"
            )
        if any(self._schedule(name).local for name in self.schedules):
            lines.append("ll and ppll train modules by local losses, the others the whole model")
        return lines

    def _row(self, name: str, gpus: int, replicas: int) -> Row:
        if gpus % replicas:
            return Row(None, obstacle="the devices cannot be shared evenly")
        schedule = self._schedule(name)
        devices = (self.device,) * (replicas if schedule.one_stage else gpus)
        try:
            settings = self.settings(name, gpus, replicas)
            job, _ = assemble(settings, self.subject, schedule, devices, self.profile, "", [])
        except ConfigError as error:
            self._errors.append(error)
            if error.key == "gpus":
                stages = gpus // replicas
                what = "units" if stages > len(self.subject.units) else "modules"
                return Row(None, obstacle=f"more stages than {what}")
            return Row(None, obstacle=error.problem)
        self._found = True
        self._beside.add(neighbours_of(job))
        found = predict(job, self.profile, self.link)
        return Row(found, found.samples_per_second / self.bp_samples_per_second)

    def _schedule(self, name: str) -> Schedule:
        schedule: Schedule = make("schedule", self.settings(name, 1, 1).schedule)
        return schedule

    def _bp(self, threads: int) -> float:
        profile = self.profile.at(self.base.batch_size, threads=threads)
        return self.base.batch_size / bp_batch_s(len(self.subject.units), profile)
