"""The address at which the store of a run listens."""

import os
import socket
import sys
from datetime import timedelta
from functools import partial

import pytest
import torch.distributed as dist

from ppll_cli.launch.machines.addresses import listening
from tests.launch.machines.conftest import free_port


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
