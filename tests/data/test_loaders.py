"""Loaders, processes that decode pictures: their images, and how they end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppll_cli.data.imagefolder import ImageFolder
from ppll_cli.data.labelled import loader, loaders
from ppll_cli.data.labelled.batches import LoadedBatches
from ppll_cli.data.labelled.loader import Wanted, image_of
from ppll_cli.data.labelled.loaders import DecodedAhead, Loaders
from ppll_cli.errors import ConfigError, RunFailedError
from ppll_cli.leaves import forkserver
from tests.data.picture_files import picture

Options = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")
SIDE = 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write twenty JPEGs of two classes, for training and test, and return their paths."""
    root = tmp_path_factory.mktemp("pictures")
    paths = []
    for number in range(20):
        folder = root / ("train" if number < 14 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{number:02}.jpg")
        picture(number, 40 + 3 * number, 60 - number).save(paths[-1], quality=90)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def two() -> Iterator[Loaders]:
    """Start two loaders."""
    with closing(Loaders(2, SIDE)) as started:
        yield started


def test_loaders_make_the_same_images_as_this_process(two: Loaders, files: list[str]) -> None:
    draws = tuple((n / 10, 1 - n / 10, n / 10, n / 10) for n in range(10))
    pieces: list[dict[str, Any]] = [{}, {"part": 0.5}, {"scale": (0.1, 0.9), "draws": draws}]
    for count in (1, 2, 3, 20):
        wanted = [Wanted(path, **pieces[n % 3]) for n, path in enumerate(files[:count])]
        begun = [two.begin(wanted), two.begin(wanted[::-1])]
        expected = [image_of(each, SIDE) for each in wanted]
        assert np.array_equal(begun[0].images(), expected)
        assert np.array_equal(begun[1].images(), expected[::-1])


def test_an_unreadable_picture_is_refused_by_name(
    two: Loaders, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    loading = two.begin([Wanted(files[0]), Wanted(str(tmp_path / "text.jpg")), Wanted(files[1])])
    with pytest.raises(ConfigError, match=r"text\.jpg: cannot be read as a picture"):
        loading.images()
    loading = two.begin([Wanted(files[0])])  # the loaders still work
    assert np.array_equal(loading.images()[0], image_of(Wanted(files[0]), SIDE))


def batches_of(dataset: ImageFolder) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches of two epochs and the test, in the order of a run."""
    batches = dataset.batches(dataset.load(), 4, 7, CPU)
    assert batches.steps_per_epoch == 4
    for epoch in range(2):
        for batch in range(4):
            yield batches.train(epoch, batch)
        for batch in range(2):
            yield batches.evaluation("test", batch, 4)
    yield batches.train(0, 2)  # a batch out of order


def test_loaders_and_the_cache_give_the_same_batches(
    options: Options, cache: Path, files: list[str]
) -> None:
    own = {"root": str(Path(files[0]).parents[2]), "size": SIDE, "pad": 2, "flip": True}
    kept, loaded = (ImageFolder(**options(**own, loaders=n)) for n in (0, 2))
    loaded.prepare()
    assert not cache.exists()
    for one, other in zip(batches_of(kept), batches_of(loaded), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
    assert loaded.identity(None) == kept.identity(None)


def test_next_batches_are_decoded_in_advance_and_others_are_cancelled() -> None:
    begun: list[int] = []
    cancelled: list[int] = []

    class Loading:
        def __init__(self, key: int) -> None:
            begun.append(key)
            self.key = key

        def images(self) -> int:
            return self.key

        def cancel(self) -> None:
            cancelled.append(self.key)

    underway = DecodedAhead[int](Loading)  # type: ignore[arg-type]
    for first in (0, 1, 5):
        images: Any = underway.images([first, first + 1, first + 2])
        assert images == first
    assert begun == [0, 1, 2, 3, 5, 6, 7]
    assert cancelled == [2, 3]


@pytest.mark.parametrize("replica", [0, 1])
def test_only_a_replicas_own_evaluation_batches_are_decoded_in_advance(
    options: Options, cache: Path, files: list[str], replica: int
) -> None:
    """Three replicas take 13 batches in turn, and evaluate again after an epoch."""
    root = str(Path(files[0]).parents[2])
    dataset = ImageFolder(**options(root=root, size=SIDE, loaders=1, val_fraction=0, eval_limit=6))
    batches = dataset.batches(dataset.load(), 4, 7, CPU)
    assert isinstance(batches, LoadedBatches)
    begun: list[int] = []
    begin = batches._evaluating._begin

    def noted(key: Any) -> Any:
        begun.append(key[1])
        return begin(key)

    batches._evaluating._begin = noted
    own = range(replica, 6, 3)
    for _ in range(2):
        for batch in own:
            batches.evaluation("test", batch, 1)
        batches.train(0, 0)
    guessed = {replica + 1, replica + 2}  # the step is known from the second batch on
    assert {*begun} - {*own} <= guessed
    assert begun.count(own[0]) == 2


def test_a_killed_loader_is_an_error_for_its_batches(files: list[str]) -> None:
    with closing(Loaders(1, SIDE)) as started:
        number = started.processes[0].pid
        os.kill(number, signal.SIGSTOP)
        loading = started.begin([Wanted(files[0])])
        os.kill(number, signal.SIGKILL)
        with pytest.raises(RunFailedError, match=r"a data loader is gone .killed by SIGKILL"):
            loading.images()
        with pytest.raises(RunFailedError, match="is gone"):
            started.begin([Wanted(files[0])]).images()


def test_a_stopped_loader_is_an_error(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "LOOK_S", 0.01)
    monkeypatch.setattr(forkserver, "STOPPED_LIMIT_S", 0.05)
    with closing(Loaders(1, SIDE)) as started:
        os.kill(started.processes[0].pid, signal.SIGSTOP)
        with pytest.raises(RunFailedError, match=r"stopped .SIGSTOP."):
            started.begin([Wanted(files[0])]).images()


def test_a_loader_that_does_not_answer_is_an_error(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forkserver, "LOOK_S", 0.01)
    monkeypatch.setattr(loaders, "ANSWER_LIMIT_S", 0.05)
    monkeypatch.setattr(loaders, "is_stopped", lambda _: False)
    with closing(Loaders(1, SIDE)) as started:
        os.kill(started.processes[0].pid, signal.SIGSTOP)
        message = rf"did not answer for 0 s while it read {files[0]}"
        with pytest.raises(RunFailedError, match=message):
            started.begin([Wanted(files[0])]).images()


def test_closed_loaders_refuse_pictures(files: list[str]) -> None:
    """Otherwise a thread that makes batches would wait for ever at the end of its process."""
    closed = Loaders(1, SIDE)
    closed.close()
    with pytest.raises(RunFailedError, match="the data loaders have been closed"):
        closed.begin([Wanted(files[0])])


def test_loaders_end_when_their_owner_is_deleted(files: list[str]) -> None:
    started = Loaders(1, SIDE)
    process = started.processes[0]
    started.begin([Wanted(files[0])]).images()
    del started
    assert process.returncode == -signal.SIGKILL


def test_no_thread_delays_the_end_of_the_program(two: Loaders) -> None:
    """The threads of a pool would first wait for all pictures that are not decoded yet."""
    threads = [thread for thread in threading.enumerate() if thread.name == "loader"]
    assert [thread.daemon for thread in threads[-2:]] == [True, True]


def test_a_large_jpeg_is_decoded_at_a_smaller_size_and_looks_the_same(tmp_path: Path) -> None:
    picture(3, 1000, 700).save(tmp_path / "large.jpg", quality=95)
    image = image_of(Wanted(str(tmp_path / "large.jpg")), 32).astype(int)
    whole = Image.open(tmp_path / "large.jpg").crop((150, 0, 850, 700))
    expected = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(image - expected).mean() < 2


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (1, 1), (1000, 3), (3, 1000)])
def test_random_crops_have_the_given_areas_and_ratios(size: tuple[int, int]) -> None:
    width, height = size
    random = np.random.RandomState(0)
    for _ in range(100):
        draws: Any = [tuple(row) for row in random.random_sample((loader.TRIES, 4))]
        box = loader.random_piece(width, height, (0.08, 1.0), draws)
        left, top, right, bottom = box
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        area = (right - left) * (bottom - top) / (width * height)
        assert area <= 1 + 1e-9
        if max(size) <= 2 * min(size):  # otherwise no piece with an allowed ratio has the area
            assert area >= 0.08 - 1e-9


def test_each_drawn_number_changes_a_random_crop() -> None:
    base = (0.5, 0.5, 0.5, 0.5)
    first = loader.random_piece(100, 100, (0.1, 0.5), [base])
    for at in range(4):
        other: Any = (*base[:at], 0.6, *base[at + 1 :])
        assert loader.random_piece(100, 100, (0.1, 0.5), [other]) != first
    assert loader.random_piece(100, 100, (0.25, 0.25), [base]) == (25, 25, 75, 75)
