"""The machines of a run, and the messages between their launchers.

torchrun or srun starts one launcher on each machine. The launchers exchange messages through a
key-value store of torch.distributed. Machine 0's launcher directs the run; the other launchers send
it the reports of their workers. As a sign of life, each launcher increases a number in the store
every half second.
"""

import json
import secrets
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from ppll_cli.errors import (
    ConfigError,
    Interrupted,
    PpllError,
    RunFailedError,
    WorkerFailedError,
)
from ppll_cli.job.spelling import read, spelled
from ppll_cli.launch.machines.greeting import greeted, read_greeting, read_welcome
from ppll_cli.launch.machines.parcels import Parcels
from ppll_cli.launch.machines.rendezvous import Rendezvous, interface_to, listening
from ppll_cli.prepare.spread import Machine

PREPARING_S = 900.0
"""Seconds that a machine may take to prepare a run, for example to download data."""

SILENT_S = 7.0
"""Seconds without a sign of life after which a machine's launcher is regarded as failed."""

OWN_GAP_S = 3.0
"""If `silent` is not called for this many seconds, this launcher was probably stopped (SIGSTOP)."""

LEAVING_S = 10.0
"""Seconds that machine 0 waits for the others to end first, because it may run their store."""

BEAT_S = 0.5  # seconds between two signs of life

Message = dict[str, Any]

_TOLD = (ConfigError, Interrupted, RunFailedError, WorkerFailedError)
"""Types of the exceptions that machines send to each other."""


class Fleet:
    """Connects this machine's launcher with the launchers of the run's other machines.

    Attributes:
        rank: Number of this machine, from 0.
        machines: Descriptions of all machines, in the order of their numbers.
        interface: Name of the network interface to the other machines; empty if unknown.
        jobs: Number of the current job, from 1; 0 before the first job.
        parcels: Open transfers of files, by the number of the other machine. A machine that shares
            the run directory with machine 0 needs none.
        remembered: On machine 0, after torchrun has restarted the launchers: the run directory. In
            all other cases None.

    Raises:
        ConfigError: A machine does not join in time, its versions differ from machine 0's, or the
            store cannot be reached.
    """

    def __init__(self, where: Rendezvous) -> None:
        self.rank, self._where, self.jobs = where.rank, where, 0
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._outbox: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._unheard: Message | None = None  # for the next call of `hear`
        self._ended, self._lost, self._said = Event(), "", 0
        self.parcels: dict[int, Parcels] = {}
        self.remembered: str | None = None
        self._heard_s = dict.fromkeys(range(where.machines), time.monotonic())
        self._met: Future[list[Machine]] = Future()
        # If the store does not answer, only this thread is blocked.
        self._thread = Thread(target=self._work, name="ppll-fleet", daemon=True)
        self._thread.start()
        self.machines = self._meet_in_time()
        self.interface = interface_to(where.host, where.port, len({m.host for m in self.machines}))
        self._looked_s = self._since_s = time.monotonic()

    @property
    def first(self) -> bool:
        """Whether this is machine 0, which directs the run."""
        return self.rank == 0

    @property
    def store(self) -> str:
        """Address (`tcp://...`) at which the workers of the current job find one another."""
        where = self._where
        return f"tcp://{where.host}:{where.port}/ppll-run/{self._session}/{self.jobs}"

    def name(self, machine: int) -> str:
        """Return a machine's name for texts, such as "machine 1 (host7)"."""
        return f"machine {machine} ({self.machines[machine].host})"

    def tell(self, message: Message) -> None:
        """Send a message: from machine 0 to all others, from another machine to machine 0."""
        self._outbox.put((f"{self._session}/said/{self.rank}/{self._said}", json.dumps(message)))
        self._said += 1

    def fail(self, error: Exception) -> None:
        """Send the error that ends the current job, or the run. The receiver calls `read_error`."""
        if not isinstance(error, ConfigError | Interrupted | WorkerFailedError):
            prefix = "" if isinstance(error, PpllError) else f"{type(error).__name__}: "
            error = RunFailedError(f"{self.name(self.rank)}: {prefix}{error}")
        fields = dict(vars(error))
        if isinstance(error, ConfigError):
            fields["value"] = str(error.value)
        number = next(n for n, kind in enumerate(_TOLD) if isinstance(error, kind))
        told = number, error.args, spelled(fields)
        self.tell({"kind": "failed", "job": self.jobs, "error": told})

    def hear(self, timeout_s: float = 0.0) -> Message | None:
        """Return the next message, or None if none comes within `timeout_s` seconds.

        Raises:
            RunFailedError: No message came, and a transfer of files has failed.
        """
        if self._unheard is not None:
            message, self._unheard = self._unheard, None
            return message
        with suppress(Empty):
            return self._inbox.get(timeout=timeout_s)
        for parcels in self.parcels.values():
            parcels.check()
        return None

    def given_up(self, message: Message) -> RunFailedError:
        """Return an error: machine 0 has given up the current job. `hear` will repeat `message`.

        Call this if `message` begins another job, or ends all jobs, before this job has ended.
        """
        self._unheard = message
        return RunFailedError(f"{self.name(0)} has given up the run")

    def silent(self) -> tuple[int, str] | None:
        """Return the number of a machine that gives no sign of life, and an error text.

        Return None if there is no such machine. Machine 0 watches all others; each of the others
        watches only machine 0. If the store cannot be reached, no machine gives a sign of life.
        """
        now = time.monotonic()
        if now - self._looked_s > OWN_GAP_S:
            self._since_s = now  # this launcher was stopped: the silence before does not count
        self._looked_s = now
        watched = range(1, len(self.machines)) if self.first else [0]
        for machine in watched:
            silent_s = now - max(self._heard_s[machine], self._since_s)
            if silent_s > SILENT_S or self._lost:  # without the store no machine can be heard
                return machine, (
                    f"{self.name(machine)} has given no sign of life for {silent_s:.0f} s: it, its "
                    f"launcher or the network has failed{self._lost}"
                )
        return None

    def remember(self, run_dir: str) -> None:
        """Store the run directory's path, for `remembered` if torchrun restarts the launchers."""
        self._outbox.put(("run directory", run_dir))

    def open_parcels(self, machine: int) -> Parcels:
        """Open the transfer of files to and from a machine, for the current job."""
        pair = f"{self._session}/{self.jobs}/parcels/{max(self.rank, machine)}"

        def connect() -> Any:
            import torch.distributed as dist

            return dist.PrefixStore(pair, self._connect())  # type: ignore[attr-defined]

        made = Parcels(connect, self.name(machine))
        self.parcels[machine] = made
        return made

    def close_parcels(self) -> None:
        """Close all transfers of files, at the end of the current job."""
        while self.parcels:
            self.parcels.popitem()[1].close()

    def close(self) -> None:
        """Leave the run. Machine 0 first waits for the others, for at most `LEAVING_S` seconds."""
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

    def _meet_in_time(self) -> list[Machine]:
        where, place = self._where, f"{self._where.host}:{self._where.port}"
        try:
            return self._met.result(where.limit_s + 2 * LEAVING_S)
        except TimeoutError:
            problem = "the store of torch.distributed there does not answer"
        except RuntimeError as error:
            problem = "no store of torch.distributed could be reached there"
            if not (self.first or where.hosted):
                problem = (
                    f"machine 0, which runs the store, did not join within {where.limit_s:g} s"
                )
            problem = f"{problem}: {_first_line(error)}"
        self._ended.set()
        remedy = "check that machine 0 has started, and that all machines can reach this port"
        raise ConfigError("MASTER_ADDR", place, problem, remedy)

    # The methods below run in threads of `Fleet` and of `Parcels`.

    def _connect(self, is_master: bool = False) -> Any:
        import torch.distributed as dist

        where = self._where
        store = dist.TCPStore(  # type: ignore[attr-defined]
            where.host,
            where.port,
            is_master=is_master,
            timeout=timedelta(seconds=where.limit_s),
            wait_for_workers=False,
            master_listen_fd=listening(where.host, where.port) if is_master else None,
        )
        return dist.PrefixStore("ppll-run", store)  # type: ignore[attr-defined]

    def _meet(self) -> list[Machine]:
        until_s = time.monotonic() + self._where.limit_s
        self._everywhere = self._connect(is_master=self.first and not self._where.hosted)
        own = {"machine": vars(Machine.here()), "word": secrets.token_hex(8)}
        welcome = self._welcome(own, until_s) if self.first else self._hello(own, until_s)
        if None in welcome:
            raise self._missing(f"machine {welcome.index(None)} did not join")
        return greeted([each for each in welcome if each is not None])

    def _welcome(self, own: Message, until_s: float) -> list[Message | None]:
        store, self._session = self._everywhere, own["word"]
        found = store.check(["run directory"])
        self.remembered = store.get("run directory").decode() if found else None
        store.set("session", self._session)
        welcome: list[Message | None] = [own]
        for rank in range(1, self._where.machines):
            come = self._wait_for(hello := f"{self._session}/hello/{rank}", until_s)
            welcome.append(read_greeting(store.get(hello)) if come else None)
        store.set(f"{self._session}/welcome", json.dumps(welcome))
        until_s = time.monotonic() + LEAVING_S
        # Wait until all machines have read the welcome: the store may end with this process.
        for rank, each in enumerate(welcome):
            if rank > 0 and each is not None:
                self._wait_for(f"{self._session}/seen/{rank}", until_s)
        return welcome

    def _hello(self, own: Message, until_s: float) -> list[Message | None]:
        store, self._session = self._everywhere, ""
        while time.monotonic() < until_s + LEAVING_S:  # longer than machine 0 waits
            if store.check(["session"]) and (new := store.get("session").decode()) != self._session:
                self._session = new
                store.set(f"{new}/hello/{self.rank}", json.dumps(own))
            if self._session and store.check([f"{self._session}/welcome"]):
                welcome = read_welcome(store.get(f"{self._session}/welcome"))
                # After a restart by torchrun, the store may still have the welcome of the earlier
                # session. Only the new welcome has this machine's word.
                (mine,) = welcome[self.rank : self.rank + 1] or [None]
                if mine is not None and mine.get("word") == own["word"]:
                    store.set(f"{self._session}/seen/{self.rank}", "")
                    return welcome
            time.sleep(0.1)
        raise self._missing(
            "not all machines joined" if self._session else "machine 0 did not join"
        )

    def _wait_for(self, key: str, until_s: float) -> bool:
        while not self._everywhere.check([key]):
            if time.monotonic() > until_s:
                return False
            time.sleep(0.1)
        return True

    def _missing(self, problem: str) -> ConfigError:
        within = f"within {self._where.limit_s:g} s"
        return ConfigError("nnodes", self._where.machines, f"{problem} {within}")

    def _work(self) -> None:
        try:
            self._met.set_result(self._meet())
        except Exception as error:
            self._met.set_exception(error)
            return
        import torch.distributed as dist

        store = dist.PrefixStore(self._session, self._everywhere)  # type: ignore[attr-defined]
        others = [*range(1, self._where.machines)] if self.first else [0]
        heard, beats = dict.fromkeys(others, 0), dict.fromkeys(others, b"")
        ended, beat = False, 0
        while not ended:
            ended = self._ended.wait(BEAT_S)
            try:
                beat += 1
                store.set(f"beat/{self.rank}", str(beat))
                while not self._outbox.empty():
                    self._everywhere.set(*self._outbox.get())
                for machine in others:
                    while store.check([said := f"said/{machine}/{heard[machine]}"]):
                        self._inbox.put({"machine": machine, **json.loads(store.get(said))})
                        heard[machine] += 1
                        if self.first:  # only machine 0 reads this message
                            store.delete_key(said)
                    if store.check([key := f"beat/{machine}"]):
                        now = store.get(key)
                        if now != beats[machine]:
                            beats[machine], self._heard_s[machine] = now, time.monotonic()
            except Exception as error:
                self._lost = (
                    f"; the store of torch.distributed cannot be reached: {_first_line(error)}"
                )
                return  # from now on `silent` returns a machine and this error


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def read_error(message: Message) -> PpllError:
    """Return the exception that is in a message of `Fleet.fail`."""
    number, arguments, fields = message["error"]
    error: PpllError = _TOLD[number].__new__(_TOLD[number], *arguments)
    vars(error).update(read(fields))
    return error
