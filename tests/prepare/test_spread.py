"""The distribution of workers over machines."""

import pytest

from ppll_cli.config import settings
from ppll_cli.errors import ConfigError
from ppll_cli.prepare.spread import Machine, spread, threads_of
from tests.conftest import compose_config


def machines(*devices: int, cores: int = 8) -> list[Machine]:
    return [Machine(f"host{n}", count, cores, {}) for n, count in enumerate(devices)]


def asked(*overrides: str) -> settings.Settings:
    return settings.parse(compose_config(list(overrides))[0])


@pytest.mark.parametrize(
    ("overrides", "there", "expected"),
    [
        (["gpus=4"], (2, 2), [("cuda:0", 0), ("cuda:1", 0), ("cuda:0", 1), ("cuda:1", 1)]),
        (["gpus=3"], (1, 4), [("cuda:0", 0), ("cuda:0", 1), ("cuda:1", 1)]),
        (["gpus=3"], (0, 0), [("cpu", 0), ("cpu", 0), ("cpu", 1)]),
        (["gpus=4", "device=cpu"], (4, 4), [("cpu", 0), ("cpu", 0), ("cpu", 1), ("cpu", 1)]),
        ([], (1, 0), [("cpu", 0), ("cpu", 1)]),
    ],
)
def test_stages_are_distributed_over_machines_in_order(
    overrides: list[str], there: tuple[int, ...], expected: list[tuple[str, int]]
) -> None:
    found = asked(*overrides)
    devices, homes = spread(found, found.devices_asked, machines(*there))
    assert list(zip(devices, homes, strict=True)) == expected


@pytest.mark.parametrize(
    ("overrides", "there", "problem"),
    [
        (["gpus=8"], (2, 4), "gpus=8: there are 6 CUDA devices on 2 machines; use gpus=6 or"),
        (["gpus=1"], (0, 0), r"gpus=1: leaves no worker for machine 1 \(host1\); use more gpus"),
        (["gpus=2"], (2, 2), r"gpus=2: leaves no worker for machine 1 \(host1\)"),
        (["device=cuda"], (0, 0), "device=cuda: no machine has a CUDA device"),
    ],
)
def test_impossible_distributions_over_machines_are_refused(
    overrides: list[str], there: tuple[int, ...], problem: str
) -> None:
    found = asked(*overrides)
    with pytest.raises(ConfigError, match=problem):
        spread(found, found.devices_asked, machines(*there))


def test_threads_are_those_of_the_machine_with_the_most_workers() -> None:
    assert threads_of(asked("gpus=3"), machines(0, 0), (0, 0, 1)) == 4
    assert threads_of(asked("gpus=3", "threads=3"), machines(0, 0), (0, 0, 1)) == 3
    assert threads_of(asked("gpus=3"), machines(0, 0, cores=1), (0, 0, 1)) == 1
