"""The machines of a run, and what their launchers tell one another.

One launcher runs on each machine, started by torchrun or srun. They meet at a store of
torch.distributed, where each shows every second that it lives. Machine 0's launcher composes the
configuration and owns the run; the others do what it says and tell it what their workers report.
All of it is JSON. The store is asked by a thread of its own, because it may be out of reach, and
then nothing must wait for it but the question who is gone.
"""

import fcntl
import json
import platform
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Self

from ppll_cli import __version__
from ppll_cli.errors import ConfigError, RunFailedError
from ppll_cli.runtime.machines.parcels import Parcels
from ppll_cli.runtime.machines.rendezvous import Rendezvous
from ppll_cli.settings import usable_cores

MEETING_S = 300.0
"""How long machines may wait for one another at the beginning."""

PREPARING_S = 900.0
"""How long a machine may take to make a run ready: it may have to download data."""

SILENT_S = 7.0
"""After so long without a sign of life a launcher, its machine or the network is gone."""

LEAVING_S = 10.0
"""How long machine 0 waits for the others to have heard that all is over; it may have the store."""

BEAT_S = 0.5

SIOCGIFADDR = 0x8915

Message = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """What a machine has.

    Attributes:
        host: Its name.
        devices: CUDA devices.
        cores: Usable ones.
        versions: Of what must be the same everywhere.
    """

    host: str
    devices: int
    cores: int
    versions: Mapping[str, str]

    @classmethod
    def here(cls) -> Self:
        """This one."""
        import torch

        versions = {"ppll-run": __version__, "torch": torch.__version__}
        versions["python"] = ".".join(platform.python_version_tuple()[:2])
        return cls(socket.gethostname(), torch.cuda.device_count(), usable_cores(), versions)


class Fleet:
    """The launchers of a run, seen from one of them.

    Args:
        where: They meet there.

    Attributes:
        machines: What each machine has.
        interface: The network interface that leads to the others; empty where it is not known.
        jobs: How many jobs there have been.
        parcels: The way of files to and from each machine that does not share the run directory of
            the job in hand with machine 0; at another machine than 0, its own way to that one.

    Raises:
        ConfigError: They do not come, or have other versions.
    """

    def __init__(self, where: Rendezvous) -> None:
        self.rank, self._where, self.jobs = where.rank, where, 0
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._outbox: SimpleQueue[Message] = SimpleQueue()
        self._unheard: Message | None = None
        self._ended, self._lost = Event(), ""
        self.parcels: dict[int, Parcels] = {}
        self._everywhere = self._connect(is_master=self.first and not where.hosted)
        self.machines = self._meet()
        self.interface = _interface_to(where.host, where.port, len({m.host for m in self.machines}))
        self._heard_s = dict.fromkeys(range(where.machines), time.monotonic())
        self._thread = Thread(target=self._work, name="ppll-fleet", daemon=True)
        self._thread.start()

    @property
    def first(self) -> bool:
        """Whether this is machine 0, which owns the run."""
        return self.rank == 0

    @property
    def store(self) -> str:
        """Where the workers of the job in hand meet."""
        where = self._where
        return f"tcp://{where.host}:{where.port}/ppll-run/{self._session}/{self.jobs}"

    def name(self, machine: int) -> str:
        """A machine, as the user is told of it."""
        return f"machine {machine} ({self.machines[machine].host})"

    def tell(self, message: Message) -> None:
        """Tell all the others, if this is machine 0, or else machine 0."""
        self._outbox.put(message)

    def refuse(self, error: ConfigError) -> None:
        """Tell that the job in hand, or all of them, cannot be run; `refusal` reads it."""
        told = (error.key, str(error.value), error.problem, error.remedy)
        self.tell({"kind": "refused", "job": self.jobs, "error": told})

    def hear(self, timeout_s: float = 0.0) -> Message | None:
        """The next message, if one comes."""
        if self._unheard is not None:
            message, self._unheard = self._unheard, None
            return message
        with suppress(Empty):
            return self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait()
        return None

    def given_up(self, message: Message) -> RunFailedError:
        """What is to be said of the job in hand when a message is about what comes after it.

        That message is heard once more.
        """
        self._unheard = message
        return RunFailedError(f"{self.name(0)} has given up the run")

    def messages(self) -> Iterator[Message]:
        """All messages that are there."""
        while (message := self.hear()) is not None:
            yield message

    def silent(self) -> tuple[int, str] | None:
        """A machine that shows no sign of life, and what is to be said of it; None while all do."""
        now = time.monotonic()
        watched = range(1, len(self.machines)) if self.first else [0]
        for machine in watched:
            silent_s = now - self._heard_s[machine]
            if silent_s > SILENT_S:
                return machine, (
                    f"{self.name(machine)} has given no sign of life for {silent_s:.0f} s: it, its "
                    f"launcher or the network is gone{self._lost}"
                )
        return None

    def remember(self, run_dir: str) -> None:
        """Note the run directory where a later attempt finds it."""
        self._everywhere.set("run directory", run_dir)

    def remembered(self) -> str | None:
        """The run directory of an earlier attempt, if there was one."""
        found = self._everywhere.check(["run directory"])
        return self._everywhere.get("run directory").decode() if found else None

    def open_parcels(self, machine: int) -> Parcels:
        """Have a way for files to and from a machine in the job in hand."""
        pair = f"{self._session}/{self.jobs}/parcels/{max(self.rank, machine)}"

        def connect() -> Any:
            import torch.distributed as dist

            return dist.PrefixStore(pair, self._connect())  # type: ignore[attr-defined]

        made = Parcels(connect, self.name(machine))
        self.parcels[machine] = made
        return made

    def close_parcels(self) -> None:
        """The job in hand needs no more files."""
        while self.parcels:
            self.parcels.popitem()[1].close()

    def close(self) -> None:
        """Say what is still to be said, and hear that the others have; not for long."""
        self.close_parcels()
        if not self.first:
            self.tell({"kind": "bye"})
        left, until_s = {*range(1, len(self.machines))}, time.monotonic() + LEAVING_S
        while self.first and left and time.monotonic() < until_s and self.silent() is None:
            message = self.hear(BEAT_S)
            if message is not None and message["kind"] == "bye":
                left.discard(message["machine"])
        self._ended.set()
        self._thread.join(2.0)

    # Everything below is done by a thread, or before it starts.

    def _connect(self, is_master: bool = False) -> Any:
        import torch.distributed as dist

        where = self._where
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                where.host,
                where.port,
                is_master=is_master,
                timeout=timedelta(seconds=MEETING_S),
                wait_for_workers=False,
            )
        except RuntimeError as error:
            place = f"{where.host}:{where.port}"
            problem = f"no store could be reached there: {str(error).splitlines()[0]}"
            raise ConfigError("MASTER_ADDR", place, problem) from None
        return dist.PrefixStore("ppll-run", store)  # type: ignore[attr-defined]

    def _meet(self) -> list[Machine]:
        """Agree on a session with all the others.

        The store may be that of an earlier attempt, of which things are left: machine 0 begins a
        session with a new name, and welcomes to it who came with the word that it has from him.
        """
        own = {**vars(Machine.here()), "word": secrets.token_hex(8)}
        welcome = self._welcome(own) if self.first else self._hello(own)
        found = [Machine(**{k: v for k, v in each.items() if k != "word"}) for each in welcome]
        for rank, other in enumerate(found):
            for name, version in other.versions.items():
                if version != found[0].versions.get(name):
                    raise ConfigError(
                        name,
                        version,
                        f"is what machine {rank} ({other.host}) has, and machine 0 "
                        f"({found[0].host}) has {found[0].versions.get(name)}",
                        "install the same on all machines",
                    )
        return found

    def _welcome(self, own: Message) -> list[Message]:
        self._session = own["word"]
        self._everywhere.set("session", self._session)
        found = [own]
        for rank in range(1, self._where.machines):
            self._await(f"{self._session}/hello/{rank}", rank)
            found.append(json.loads(self._everywhere.get(f"{self._session}/hello/{rank}")))
        self._everywhere.set(f"{self._session}/welcome", json.dumps(found))
        for rank in range(1, self._where.machines):  # the store may end with this process
            self._await(f"{self._session}/seen/{rank}", rank)
        return found

    def _hello(self, own: Message) -> list[Message]:
        until_s, self._session = time.monotonic() + MEETING_S, ""
        while time.monotonic() < until_s:
            self._await("session", 0)
            session = self._everywhere.get("session").decode()
            if session != self._session:
                self._session = session
                self._everywhere.set(f"{session}/hello/{self.rank}", json.dumps(own))
            if self._everywhere.check([f"{session}/welcome"]):
                found: list[Message] = json.loads(self._everywhere.get(f"{session}/welcome"))
                if found[self.rank]["word"] == own["word"]:
                    self._everywhere.set(f"{session}/seen/{self.rank}", "")
                    return found
            time.sleep(0.1)
        raise self._missing(0)

    def _await(self, key: str, rank: int) -> None:
        until_s = time.monotonic() + MEETING_S
        while not self._everywhere.check([key]):
            if time.monotonic() > until_s:
                raise self._missing(rank)
            time.sleep(0.1)

    def _missing(self, rank: int) -> ConfigError:
        problem = f"machine {rank} did not come within {MEETING_S:.0f} s"
        return ConfigError("nnodes", self._where.machines, problem)

    def _work(self) -> None:
        """Show that this machine lives, and carry messages, until the end or until that fails."""
        import torch.distributed as dist

        store = dist.PrefixStore(self._session, self._everywhere)  # type: ignore[attr-defined]
        others = [*range(1, len(self.machines))] if self.first else [0]
        heard, beats = dict.fromkeys(others, 0), dict.fromkeys(others, b"")
        sent = beat = 0
        ended = False
        while not ended:
            ended = self._ended.wait(BEAT_S)
            try:
                beat += 1
                store.set(f"beat/{self.rank}", str(beat))
                while not self._outbox.empty():
                    store.set(f"said/{self.rank}/{sent}", json.dumps(self._outbox.get()))
                    sent += 1
                for machine in others:
                    while store.check([said := f"said/{machine}/{heard[machine]}"]):
                        self._inbox.put({"machine": machine, **json.loads(store.get(said))})
                        heard[machine] += 1
                        if self.first:  # nobody else reads it
                            store.delete_key(said)
                    if store.check([key := f"beat/{machine}"]):
                        now = store.get(key)
                        if now != beats[machine]:
                            beats[machine], self._heard_s[machine] = now, time.monotonic()
            except Exception as error:
                self._lost = f"; the store cannot be reached: {str(error).splitlines()[0]}"
                return  # the others' silence is all that is left to notice


def refusal(message: Message) -> ConfigError:
    """What `Fleet.refuse` told."""
    return ConfigError(*message["error"])


def _interface_to(host: str, port: int, hosts: int) -> str:
    """The network interface through which a host is reached; empty where that is not found.

    Of several hosts none is reached through the loopback interface, to which a host's own name may
    lead.
    """
    with suppress(OSError), socket.create_connection((host, port), timeout=10) as connection:
        address = connection.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):
                found = fcntl.ioctl(connection.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(found[20:24]) == address:
                    return "" if hosts > 1 and address.startswith("127.") else name
    return ""
