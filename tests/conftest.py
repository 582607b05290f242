"""Runs the program inside a test, and other helpers."""

import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, read_write
from safetensors.torch import load_file
from torch import Tensor

from ppll_cli.config import settings
from ppll_cli.config.composition import own_choices, register_resolvers
from ppll_cli.config.options import conf_dir
from ppll_cli.job.job import Job
from ppll_cli.launch.resume import recorded
from ppll_cli.launch.run import Run
from ppll_cli.leaves import cuda, forkserver
from ppll_cli.prepare.preparation import Prepared, prepare
from ppll_cli.transport import memory
from tests import kept

# Tests run at the same time as others, and waiting threads of OpenMP use their cores.
torch.set_num_threads(1)

# Other programs use the machine too, so the duration of an example means nothing.
hypothesis.settings.register_profile("ppll", deadline=None)
hypothesis.settings.load_profile("ppll")


@pytest.fixture(scope="session", autouse=True)
def _ending_signals_are_not_ignored() -> Iterator[None]:
    """Give SIGINT and SIGHUP handlers if the tests were started with these signals ignored.

    Shells without job control start programs in the background with SIGINT ignored, and `nohup`
    starts them with SIGHUP ignored. Programs that a test starts would inherit this, and would not
    end at the test's signal. If a signal has a handler here, it is not ignored in a new program.
    """
    handlers: dict[signal.Signals, Callable[..., Any]] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: lambda *_: None,
    }
    ignored = [each for each in handlers if signal.getsignal(each) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, handlers[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def _fork_server_is_outside_of_tests() -> None:
    """Start the fork server in a folder that is never removed.

    In a removed folder torch cannot load its library for linear algebra.
    """
    forkserver.start()


@pytest.fixture(scope="session", autouse=True)
def _configurations_are_kept() -> Iterator[None]:
    with kept.configurations():
        yield


def pytest_collection_finish() -> None:
    """Exclude all objects that exist before the first test from garbage collection.

    Composing creates and drops many objects, and so causes many collections. Each of them would
    otherwise visit all objects of torch.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _equal_random_numbers_in_every_run() -> None:
    """Seed torch, so that a test with random numbers fails in every run or in no run.

    `torch.manual_seed` would seed every kind of device too, and take longer than many tests.
    """
    torch.default_generator.manual_seed(0)


@dataclass(frozen=True)
class Result:
    """The result of a finished run."""

    summary: dict[str, Any]
    run_dir: Path

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the last checkpoint, from the files of all stages."""
        files = sorted((self.run_dir / "checkpoints" / "last").glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    @property
    def test(self) -> dict[str, float]:
        """The results of the last evaluation of the test set."""
        found: dict[str, float] = self.summary["test"]
        return found


Runner = Callable[..., Result]


def compose_config(overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the composed configuration as plain data, and the option chosen in each group.

    Composing takes Hydra a tenth of a second or more. So configurations of the same options, added
    keys and removed keys are kept, and values of existing keys are set in a copy. All other
    overrides are composed by Hydra.
    """
    register_resolvers()
    parsed = [_parsed(override) for override in overrides]
    groups = _composed(()).choices
    made = [
        each for each in parsed if each.key_or_group in groups or each.is_add() or each.is_delete()
    ]
    chosen = tuple(str(each.input_line) for each in made)
    values = [each for each in parsed if each not in made]
    base = _composed(chosen)
    if all(_is_a_value(each, base) for each in values):
        ours = pickle.loads(base.pickled)
        for each in values:
            OmegaConf.update(ours, each.key_or_group, each.value())
    else:
        base = _compose(overrides)
        ours = base.ours
    runtime = base.hidden.hydra.runtime
    with read_write(runtime):  # the kept configuration may be from another folder
        runtime.cwd = os.getcwd()
    HydraConfig.instance().cfg = base.hidden
    config: Any = OmegaConf.to_container(ours, resolve=True)
    return config, own_choices(base.choices)


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _is_a_value(override: Override, base: "Composed") -> bool:
    """Return whether an override gives a value to an existing key."""
    missing = object()
    return (
        not override.is_sweep_override()
        and OmegaConf.select(base.ours, override.key_or_group, default=missing) is not missing
    )


@dataclass(frozen=True)
class Composed:
    """A configuration composed by Hydra.

    Attributes:
        hidden: Hydra's own part, as `HydraConfig` has it.
        ours: The other part.
        pickled: The other part, of which a copy is made most quickly from bytes.
    """

    hidden: Any
    ours: DictConfig
    pickled: bytes

    @property
    def choices(self) -> dict[str, Any]:
        """The option chosen in each group, including Hydra's groups."""
        chosen: dict[str, Any] = self.hidden.hydra.runtime.choices
        return chosen


def _compose(overrides: Sequence[str]) -> Composed:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", [*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    with_hydra: Any = OmegaConf.to_container(composed, resolve=False)
    ours = OmegaConf.create({k: v for k, v in with_hydra.items() if k != "hydra"})
    return Composed(HydraConfig.instance().cfg, ours, pickle.dumps(ours))


_composed = cache(_compose)


def assert_same_run(one: Result, other: Result) -> None:
    """Check that two runs have the same bits in their last checkpoints, and the same evaluation."""
    assert_same(one.tensors(), other.tensors())
    assert one.test == other.test


def prepared(*overrides: str, folder: Path | str = "unused") -> Prepared:
    """Return a run that is prepared to start, by default on CPU."""
    config, _ = compose_config(["device=cpu", *overrides])
    return prepare(settings.parse(config), str(folder))


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Return a function that runs the program with overrides.

    Workers are real, with one thread each.
    """
    numbers = count()

    def run(*overrides: str) -> Result:
        usual = ["threads=1", "device=cpu", "timeline=false"]  # pictures have their own tests
        config, choices = compose_config([*usual, *overrides])
        run_dir = tmp_path / f"run-{next(numbers)}"
        run_dir.mkdir(exist_ok=True)
        return Result(Run(settings.parse(config), config, choices, run_dir).execute(), run_dir)

    return run


def resumed(before: Result, *overrides: str) -> Result:
    """Resume a run in its directory, as `resume=RUN_DIR` does."""
    given = [f"resume={before.run_dir}", *overrides]
    recording = recorded(given)
    assert recording is not None
    config, choices = recording.changed(*compose_config(recording.arguments(given)), given)
    continued = Run(settings.parse(config), config, choices, before.run_dir, recording)
    return Result(continued.execute(), before.run_dir)


def with_settings(job: Job, **changed: object) -> Job:
    """Return a job with changed settings."""
    return replace(job, settings=job.settings.model_copy(update=changed))


def own_model(name: str, **options: object) -> list[str]:
    """Return overrides that replace the default model by a class in `tests`.

    The class is in `tests.own_models`, if the name has no module.
    """
    keys = [
        "dim",
        "depth",
        "heads",
        "patch",
        "mlp_ratio",
        "pooling",
        "dropout",
        "attention_dropout",
        "drop_path",
    ]
    removed = [f"~model.{key}" for key in keys]
    added = [f"+model.{key}={value}" for key, value in options.items()]
    path = name if "." in name else f"own_models.{name}"
    return [f"model._target_=tests.{path}", *removed, *added]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Check that both have the same names, and the same bits."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} differ: {different[:5]}"


def shared_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Pretend that /dev/shm has 64 MiB, of which `free` bytes are free."""
    there = SimpleNamespace(total=64 << 20, free=free)
    monkeypatch.setattr(memory, "shutil", SimpleNamespace(disk_usage=lambda _: there))


def pretend_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Pretend that torch can use `count` CUDA devices of this machine."""
    reason = "" if count else "there is no CUDA device"
    monkeypatch.setattr(cuda, "device_count", lambda: count)
    monkeypatch.setattr(cuda, "why_none", lambda: reason)
