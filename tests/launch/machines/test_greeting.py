"""The first messages of machines, which may be of other versions or other programs."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from ppll_cli import __version__
from ppll_cli.errors import ConfigError
from ppll_cli.launch.machines import fleet
from ppll_cli.launch.machines.fleet import Fleet
from ppll_cli.launch.machines.greeting import LARGEST_BYTES, greeted, read_greeting, read_welcome
from ppll_cli.launch.machines.rendezvous import Rendezvous
from ppll_cli.prepare.spread import Machine

OWN: dict[str, Any] = {"host": "a", "devices": 0, "cores": 2, "versions": {"ppll-run": "0.1"}}
UNREADABLE = (
    rf"^ppll-run={__version__}: this version cannot read the first message of machine 1; install "
    r"the same version on all machines$"
)


def meet(machine: object) -> list[Machine]:
    return greeted([{"machine": OWN}, read_greeting(json.dumps({"machine": machine}).encode())])


def test_machines_with_the_same_versions_meet() -> None:
    assert meet({**OWN, "host": "b"}) == [Machine(**OWN), Machine(**{**OWN, "host": "b"})]


@pytest.mark.parametrize("further", [{}, {"memory_bytes": 1}])
def test_versions_are_compared_before_anything_else_is_read(further: dict[str, int]) -> None:
    """An older or newer version once ended with a KeyError or a TypeError."""
    other = {"host": "b", "versions": {"ppll-run": "0.2"}, **further}
    message = r"^ppll-run=0\.2: is the version on machine 1 \(b\), but machine 0 \(a\) has 0\.1; "
    with pytest.raises(ConfigError, match=message):
        meet(other)


def test_a_version_that_one_machine_does_not_tell_differs() -> None:
    with pytest.raises(ConfigError, match=r"^ppll-run=null: .* but machine 0 \(a\) has 0\.1"):
        meet({**OWN, "versions": {}})


@pytest.mark.parametrize(
    "machine",
    [
        None,
        [],
        {},
        {"versions": ["ppll-run"]},
        {**OWN, "memory_bytes": 1},
        {**OWN, "devices": "many"},
        {name: value for name, value in OWN.items() if name != "cores"},
    ],
)
def test_a_description_of_another_kind_is_refused(machine: object) -> None:
    with pytest.raises(ConfigError, match=UNREADABLE):
        meet(machine)


STRANGE = {
    "no JSON": b"GET / HTTP/1.1",
    "no text": b"\xff\x00",
    "nothing": b"",
    "null": b"null",
    "number": b"1",
    "deep": b"[" * 100_000,
    "huge": b'{"machine": "%s"}' % (b"x" * LARGEST_BYTES),
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_a_strangers_text_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match=UNREADABLE):
        greeted([{"machine": OWN}, read_greeting(text)])


def test_a_welcome_that_is_no_list_is_refused() -> None:
    assert read_welcome(b'[null, 3, {"word": "a"}]') == [None, {}, {"word": "a"}]
    with pytest.raises(ConfigError, match=r"cannot read the first message of machine 0"):
        read_welcome(b'{"machines": []}')


def store_at(port: int, is_master: bool) -> Any:
    made = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1",
        port,
        is_master=is_master,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
    )
    return dist.PrefixStore("ppll-run", made)  # type: ignore[attr-defined]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_refuses_a_stranger(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other machine is played by this test."""
    monkeypatch.setattr(fleet, "LEAVING_S", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    where = Rendezvous(rank, 2, "127.0.0.1", port, hosted=True, limit_s=30.0)
    store = store_at(port, is_master=True)
    play: Callable[[], None]

    def join() -> None:
        store.set(f"{store.get('session').decode()}/hello/1", "hello")

    def welcome() -> None:
        store.set("session", "s")
        store.set("s/welcome", json.dumps([1, json.loads(store.get("s/hello/1"))]))

    play = welcome if rank else join
    with ThreadPoolExecutor(1) as pool:
        played = pool.submit(play)
        with pytest.raises(ConfigError, match=rf"the first message of machine {1 - rank}; "):
            Fleet(where)
        played.result(60.0)
