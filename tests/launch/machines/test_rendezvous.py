"""The environment variables in which torchrun and srun describe the machines."""

import pytest

from ppll_cli.errors import ConfigError
from ppll_cli.launch.machines.rendezvous import Rendezvous

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "LOCAL_WORLD_SIZE": "1",
    "RANK": "1",
    "WORLD_SIZE": "3",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "1",
    "MASTER_ADDR": "b",
    "MASTER_PORT": "29501",
}


def test_the_variables_of_torchrun_and_srun_are_read() -> None:
    assert Rendezvous.of(TORCHRUN) == Rendezvous(1, 3, "a", 29500, hosted=True)
    assert Rendezvous.of(SRUN) == Rendezvous(1, 2, "b", 29501, hosted=False)
    hasty = Rendezvous.of({**SRUN, "PPLL_MEETING_S": "20"})
    assert hasty == Rendezvous(1, 2, "b", 29501, hosted=False, limit_s=20.0)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "1", "WORLD_SIZE": "2"},  # these are of some other program
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},  # in a batch script, without srun
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_launcher_needs_no_rendezvous(environment: dict[str, str]) -> None:
    assert Rendezvous.of(environment) is None


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        (
            {**TORCHRUN, "LOCAL_WORLD_SIZE": "2"},
            "nproc-per-node=2: starts several launchers on a machine",
        ),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "4"}, "ntasks=4: starts several launchers on a machine"),
        ({k: v for k, v in SRUN.items() if k != "MASTER_PORT"}, "must say where the machines meet"),
        (
            {**SRUN, "PPLL_MEETING_S": "soon"},
            "PPLL_MEETING_S=soon: is not a number of seconds from 1",
        ),
        (
            {**SRUN, "PPLL_MEETING_S": "nan"},
            "PPLL_MEETING_S=nan: is not a number of seconds from 1",
        ),
    ],
)
def test_invalid_variables_are_refused(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Rendezvous.of(environment)
