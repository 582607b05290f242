"""The order of batches and marks."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll_cli.job.course import Course, EvaluationBatch, Item, TrainBatch, split_batch
from ppll_cli.pipeline.instructions import Checkpoint, End, Evaluate

COURSE = Course(
    samples={"train": 10, "val": 3, "test": 5},
    batch_size=4,
    drop_last=False,
    evaluation_size=2,
    epochs=2,
    max_steps=None,
    eval_every=1,
    checkpoint_every=None,
)
ONLY_TRAIN = replace(COURSE, samples={"train": 10})


def never() -> bool:
    return False


def after(batches: int) -> Callable[[], bool]:
    """Return a function that returns False for the given number of calls, then True."""
    answers = iter([False] * batches)
    return lambda: next(answers, True)


def test_a_course_yields_all_items_in_order() -> None:
    def evaluation(step: int, epoch: int) -> list[Item]:
        return [
            EvaluationBatch("val", batch=0, samples=2),
            EvaluationBatch("val", batch=1, samples=1),
            Evaluate("val", step, epoch),
            EvaluationBatch("test", batch=0, samples=2),
            EvaluationBatch("test", batch=1, samples=2),
            EvaluationBatch("test", batch=2, samples=1),
            Evaluate("test", step, epoch),
        ]

    assert list(COURSE.items(never)) == [
        TrainBatch(step=0, epoch=0, batch=0, samples=4),
        TrainBatch(step=1, epoch=0, batch=1, samples=4),
        TrainBatch(step=2, epoch=0, batch=2, samples=2),
        *evaluation(step=3, epoch=1),
        Checkpoint(step=3, epoch=1),
        TrainBatch(step=3, epoch=1, batch=0, samples=4),
        TrainBatch(step=4, epoch=1, batch=1, samples=4),
        TrainBatch(step=5, epoch=1, batch=2, samples=2),
        *evaluation(step=6, epoch=2),
        Checkpoint(step=6, epoch=2),
        End(step=6),
    ]


def line(course: Course, start: int = 0, stop: Callable[[], bool] = never) -> str:
    """Return a course as text.

    A training batch is its size, v and t are evaluations of val and test, c is a checkpoint.
    """
    words = []
    for item in course.items(stop, start):
        match item:
            case TrainBatch():
                words.append(str(item.samples))
            case Evaluate():
                words.append(item.split[0])
            case Checkpoint():
                words.append("c")
            case End():
                words.append("end")
    return " ".join(words)


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        (replace(COURSE, epochs=1), "4 4 2 v t c end"),
        (replace(COURSE, drop_last=True), "4 4 v t c 4 4 v t c end"),
        (replace(COURSE, batch_size=5, drop_last=True), "5 5 v t c 5 5 v t c end"),
        (replace(COURSE, batch_size=10, epochs=3, eval_every=2), "10 c 10 v t c 10 v t c end"),
        (replace(COURSE, batch_size=10, epochs=3, eval_every=9), "10 c 10 c 10 v t c end"),
        (replace(COURSE, checkpoint_every=2), "4 4 c 2 v t 4 c 4 2 v t c end"),
        (replace(COURSE, checkpoint_every=9), "4 4 2 v t 4 4 2 v t c end"),
        (replace(COURSE, max_steps=2), "4 4 v t c end"),
        (replace(COURSE, max_steps=3), "4 4 2 v t c end"),
        (replace(COURSE, max_steps=4), "4 4 2 v t c 4 v t c end"),
        (replace(COURSE, max_steps=4, eval_every=5), "4 4 2 c 4 v t c end"),
        (replace(COURSE, max_steps=9), "4 4 2 v t c 4 4 2 v t c end"),
        (ONLY_TRAIN, "4 4 2 c 4 4 2 c end"),
        (replace(COURSE, samples={"train": 4, "test": 1}), "4 t c 4 t c end"),
    ],
)
def test_batches_evaluations_and_checkpoints_come_in_order(course: Course, expected: str) -> None:
    assert line(course) == expected


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (0, "c end"),
        (2, "4 4 c end"),
        (3, "4 4 2 v t c end"),  # at the end of an epoch, the evaluation is still done
        (6, "4 4 2 v t c 4 4 2 v t c end"),
    ],
)
def test_a_stopped_course_ends_with_a_checkpoint(batches: int, expected: str) -> None:
    assert line(COURSE, stop=after(batches)) == expected


@pytest.mark.parametrize(("batches", "epoch"), [(1, 1), (3, 1), (4, 2), (6, 2)])
def test_the_last_checkpoint_has_the_epoch_of_the_last_step(batches: int, epoch: int) -> None:
    """The checkpoint has the epoch of the last step, counted from 1."""
    *_, last, end = COURSE.items(after(batches))
    assert (last, end) == (Checkpoint(batches, epoch), End(batches))


@given(st.integers(0, 6))
def test_a_stop_does_not_save_a_step_twice(batches: int) -> None:
    """A stop at the end of an epoch once made two marks for one step. This mixed up their files."""
    items = COURSE.items(after(batches))
    saved = [item.step for item in items if isinstance(item, Checkpoint)]
    assert len(saved) == len(set(saved))
    assert saved[-1] == batches


counts = st.integers(1, 5)
courses = st.builds(
    Course,
    samples=st.fixed_dictionaries(
        {"train": st.integers(4, 20)}, optional={"val": counts, "test": counts}
    ),
    batch_size=st.integers(1, 4),
    drop_last=st.booleans(),
    evaluation_size=counts,
    epochs=counts,
    max_steps=st.none() | st.integers(1, 30),
    eval_every=counts,
    checkpoint_every=st.none() | counts,
)


@given(courses)
def test_a_course_resumed_at_a_checkpoint_has_the_same_rest(course: Course) -> None:
    items = list(course.items(never))
    for index, item in enumerate(items[:-2]):
        if isinstance(item, Checkpoint):
            assert list(course.items(never, start=item.step)) == items[index + 1 :]


@given(courses, st.integers(0, 99))
def test_a_course_stopped_and_resumed_trains_every_batch_once(course: Course, stop: int) -> None:
    """No evaluation or checkpoint of the uninterrupted run is missing."""
    stop = min(stop, course.steps)
    whole = list(course.items(never))
    before = list(course.items(after(stop)))
    rest = list(course.items(never, start=stop))
    for kind in (TrainBatch, Checkpoint, Evaluate):
        wanted = [item for item in whole if isinstance(item, kind)]
        made = [item for item in (*before, *rest) if isinstance(item, kind)]
        assert [item for item in wanted if item not in made] == []
        if kind is TrainBatch:
            assert made == wanted
    steps = [item.step for item in rest if isinstance(item, Checkpoint)]
    assert len(steps) == len(set(steps))
    assert steps[-1] == course.steps


@pytest.mark.parametrize(
    ("course", "start", "expected"),
    [
        (COURSE, 0, "4 4 2 v t c 4 4 2 v t c end"),
        (COURSE, 1, "4 2 v t c 4 4 2 v t c end"),
        (COURSE, 3, "4 4 2 v t c end"),
        (COURSE, 5, "2 v t c end"),
        (COURSE, 6, "v t c end"),  # repeat the evaluation: it may be missing
        (replace(COURSE, max_steps=4), 3, "4 v t c end"),  # steps count from the start of the run
        (replace(COURSE, max_steps=4), 4, "v t c end"),
        (replace(COURSE, checkpoint_every=2), 3, "4 c 4 2 v t c end"),
        (replace(COURSE, eval_every=2), 2, "2 c 4 4 2 v t c end"),
        (replace(COURSE, drop_last=True), 3, "4 v t c end"),
    ],
)
def test_a_resumed_course_continues_after_its_start(
    course: Course, start: int, expected: str
) -> None:
    assert line(course, start) == expected


@pytest.mark.parametrize(("start", "epoch"), [(1, 1), (3, 1), (4, 2)])
def test_a_course_stopped_right_after_resuming_saves_its_start(start: int, epoch: int) -> None:
    assert list(COURSE.items(after(0), start)) == [Checkpoint(start, epoch), End(start)]


@given(courses)
def test_steps_and_samples_add_up(course: Course) -> None:
    items = list(course.items(never))
    batches = [item for item in items if isinstance(item, TrainBatch)]
    assert [batch.step for batch in batches] == list(range(course.steps))
    assert course.steps == min(course.epochs * course.steps_per_epoch, course.max_steps or 999)
    for batch in batches:
        assert batch.epoch * course.steps_per_epoch + batch.batch == batch.step
    whole = [batch for batch in batches if batch.epoch == 0]
    if len(whole) == course.steps_per_epoch and not course.drop_last:
        assert sum(batch.samples for batch in whole) == course.samples["train"]
    *_, saved, end = items
    assert isinstance(saved, Checkpoint)
    assert saved.step == course.steps
    assert end == End(course.steps)


@given(st.integers(1, 200), st.integers(1, 50))
def test_a_batch_is_split_into_almost_equal_parts(samples: int, microbatches: int) -> None:
    sizes = split_batch(samples, microbatches)
    assert sum(sizes) == samples
    assert len(sizes) == min(samples, microbatches)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    assert sizes[-1] >= 1


@pytest.mark.parametrize(
    ("samples", "microbatches", "sizes"),
    [(8, 4, [2, 2, 2, 2]), (10, 4, [3, 3, 2, 2]), (3, 4, [1, 1, 1]), (5, 1, [5])],
)
def test_larger_parts_of_a_batch_come_first(
    samples: int, microbatches: int, sizes: list[int]
) -> None:
    assert split_batch(samples, microbatches) == sizes


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))
def test_evaluation_batches_are_grouped_into_items(
    val: int, test: int, size: int, together: int
) -> None:
    """Each batch comes once, with its number.

    Each item has one of the announced numbers of batches.
    """
    samples = {"train": 10, "test": test} | ({"val": val} if val else {})
    course = replace(
        COURSE, samples=samples, evaluation_size=size, evaluation_batches=together, epochs=1
    )
    items = [item for item in course.items(never) if isinstance(item, EvaluationBatch)]
    assert {len(course.evaluation_sizes(item)) for item in items} <= course.evaluation_counts()
    for split, count in samples.items():
        own = [item for item in items if item.split == split]
        sizes = [size for item in own for size in course.evaluation_sizes(item)]
        if split != "train":
            assert sizes == [size] * (count // size) + [count % size] * (count % size > 0)
            assert [item.batch for item in own] == list(range(0, len(sizes), together))
