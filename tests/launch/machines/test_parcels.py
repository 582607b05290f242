"""Files are sent over a network in pieces."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic, sleep

import pytest

from ppll_cli.errors import RunFailedError
from ppll_cli.job.manifest import SavedFile
from ppll_cli.launch.machines import parcels
from ppll_cli.launch.machines.parcels import AHEAD, Parcels

LIMIT_S = 20.0

Pair = tuple[Parcels, Parcels]


class Shelf:
    """A store that records how many pieces it held.

    Attributes:
        most: The largest number of pieces that it held at one time.
    """

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.most = 0

    def set(self, key: str, value: bytes, /) -> None:
        self.held[key] = value
        self.most = max(self.most, len(self.held))

    def get(self, key: str, /) -> bytes:
        return self.held[key]

    def check(self, keys: list[str], /) -> bool:
        return self.held.keys() >= {*keys}

    def delete_key(self, key: str, /) -> bool:
        return self.held.pop(key, None) is not None


@pytest.fixture
def store() -> Shelf:
    return Shelf()


@pytest.fixture
def pair(store: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Return the parcels of machine 0 and of machine 1, which send files to each other."""
    monkeypatch.setattr(parcels, "PIECE_BYTES", 10)
    with ExitStack() as held:
        first = Parcels(lambda: store, "machine 1 (b)")
        second = Parcels(lambda: store, "machine 0 (a)")
        yield held.enter_context(closing(first)), held.enter_context(closing(second))


def write(folder: Path, name: str, content: bytes) -> SavedFile:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return SavedFile(name, len(content), hashlib.sha256(content).hexdigest())


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = monotonic() + LIMIT_S
    while not condition():
        assert monotonic() < until_s
        sleep(0.005)


def problem_of(one: Parcels) -> str:
    """Wait until a transfer fails, and return its error message."""
    wait_for(lambda: _problem(one) != "")
    return _problem(one)


def _problem(one: Parcels) -> str:
    try:
        one.check()
    except RunFailedError as error:
        return str(error)
    return ""


def test_files_arrive_in_order_both_ways(pair: Pair, store: Shelf, tmp_path: Path) -> None:
    first, second = pair
    contents = [bytes(range(256)), b"", b"0123456789", b"x"]
    files = [write(tmp_path / "a", f"f{n}", content) for n, content in enumerate(contents)]
    back = write(tmp_path / "b", "back", b"y" * 99)
    for file in files:
        first.send(tmp_path / "a" / file.name)
    arrived = [second.take(file, tmp_path / "there") for file in files]
    second.send(tmp_path / "b" / "back", remove=True)
    arrived.append(first.take(back, tmp_path / "here"))
    for one in arrived:
        assert one.wait(LIMIT_S), [_problem(each) for each in pair]
    for file, content in zip(files, contents, strict=True):
        assert (tmp_path / "there" / file.name).read_bytes() == content
    assert (tmp_path / "here" / "back").read_bytes() == b"y" * 99
    wait_for(lambda: not (tmp_path / "b" / "back").exists())
    assert (tmp_path / "a" / "f0").exists()
    assert store.held == {}
    assert 1 < store.most <= AHEAD


def test_the_store_holds_only_a_few_pieces(pair: Pair, store: Shelf, tmp_path: Path) -> None:
    first, second = pair
    files = [write(tmp_path, f"f{n}", b"0123456789") for n in range(2 * AHEAD)]
    sent = [first.send(tmp_path / file.name) for file in files]
    wait_for(lambda: store.most == AHEAD)
    assert not sent[AHEAD].wait(0.1)
    for file in files:
        second.take(file, tmp_path / "there")
    assert sent[-1].wait(LIMIT_S)
    assert store.most == AHEAD


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"other", "it arrived damaged: 5 bytes with SHA-256 "), (b"longer", "damaged: 6 bytes with")],
)
def test_a_damaged_file_is_reported(
    pair: Pair, tmp_path: Path, content: bytes, problem: str
) -> None:
    first, second = pair
    file = write(tmp_path, "stage-1", b"right")
    (tmp_path / "stage-1").write_bytes(content)
    there = first.take(file, tmp_path / "there")
    second.send(tmp_path / "stage-1")
    found = problem_of(first)
    assert found.startswith(f"{tmp_path}/there/stage-1 cannot be received from machine 1 (b): ")
    assert problem in found
    assert f"instead of 5 with {file.sha256}" in found
    assert not there.is_set()


def test_a_missing_file_is_reported(pair: Pair, tmp_path: Path) -> None:
    pair[0].send(tmp_path / "none")
    assert problem_of(pair[0]).startswith(f"{tmp_path}/none cannot be sent to machine 1 (b): ")


def test_a_stalled_transfer_names_the_other_machine(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "STALLED_S", 0.05)
    first, second = pair
    first.take(write(tmp_path, "file", b"0"), tmp_path / "there")
    assert "from machine 1 (b): nothing came for" in problem_of(first)
    write(tmp_path, "long", b"0123456789" * 2 * AHEAD)
    second.send(tmp_path / "long")
    assert "to machine 0 (a): nothing was read for" in problem_of(second)


def test_close_ends_the_transfers_of_both_ends(pair: Pair, store: Shelf, tmp_path: Path) -> None:
    first, second = pair
    file = write(tmp_path, "long", b"0123456789" * 2 * AHEAD)
    sent = first.send(tmp_path / "long")
    wait_for(lambda: store.most == AHEAD)
    first.close()
    there = second.take(file, tmp_path / "there")
    wait_for(lambda: not store.held)
    second.close()
    for one in pair:
        assert problem_of(one).endswith(": the transfer was cancelled")
    assert not sent.is_set()
    assert not there.is_set()
