"""Where machines meet: the variables of torchrun and srun, and the address of the store."""

import os
import socket
import sys
from datetime import timedelta
from functools import partial

import pytest
import torch.distributed as dist

from ppll_cli.errors import ConfigError
from ppll_cli.launch.machines.rendezvous import Rendezvous, listening
from tests.launch.machines.conftest import free_port

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
        ({k: v for k, v in SRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT=: must be a port"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, "MASTER_ADDR=: must name"),
        (
            {k: v for k, v in TORCHRUN.items() if k != "RANK"},
            "RANK=: must be the number of this machine, from 0 to 2",
        ),
        ({**SRUN, "SLURM_PROCID": "2"}, "SLURM_PROCID=2: must be the number .* from 0 to 1"),
        ({**SRUN, "MASTER_PORT": "http"}, "MASTER_PORT=http: must be a port, from 1 to 65535"),
        ({**TORCHRUN, "MASTER_PORT": "65536"}, "MASTER_PORT=65536: must be a port"),
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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_the_store_listens_only_at_the_given_address() -> None:
    """A socket that torch opens itself listens on all interfaces."""
    port = free_port()
    store_at = partial(
        dist.TCPStore,  # type: ignore[attr-defined]
        "127.0.0.1",
        port,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
    )
    listener = listening("127.0.0.1", port)
    assert listener is not None
    store = store_at(is_master=True, master_listen_fd=listener)
    store.set("key", "value")
    other = store_at(is_master=False)
    assert other.get("key") == b"value"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=30)


@pytest.mark.parametrize("host", ["localhost", "192.0.2.1"])
def test_torch_opens_its_own_socket_for_host_names_and_foreign_addresses(host: str) -> None:
    """On another machine, a name may have another address. An address may belong to a gateway."""
    assert listening(host, free_port()) is None


def test_torch_opens_its_own_socket_if_the_port_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert listening("127.0.0.1", taken.getsockname()[1]) is None


def test_the_socket_has_the_family_of_its_address() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    listener = listening("::1", free_port())
    if listener is None:
        pytest.skip("the loopback interface has no IPv6 address")
    os.close(listener)
