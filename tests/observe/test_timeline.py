"""Timelines: the content of the file, and what the picture shows."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from subprocess import run as run_program
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from ppll_cli.observe import timeline, timeline_picture
from ppll_cli.observe.spans import Restart, Span, Traced
from ppll_cli.observe.timeline_picture import COLOURS, LEGEND, RARE, picture, window
from ppll_cli.pipeline.instructions import (
    Backward,
    BackwardInput,
    BackwardWeight,
    FinishAverage,
    Forward,
    Loss,
    NextBatch,
    ReceiveActivations,
    ReceiveGradients,
    SendActivations,
    SendGradients,
    Step,
)
from tests.conftest import Runner
from tests.observe.drawn import kept_figures

FORWARD, SEND, RECEIVE = Forward(0, 0), SendActivations(1, 0, 0), ReceiveActivations(0, 0, 0)

LANES = [
    [
        Span(10.0, 10.5, "data", NextBatch(), 7),
        Span(10.5, 12.0, "compute", FORWARD, 7),
        Span(12.0, 12.5, "blocked", None, 7),
        Span(12.5, 13.0, "transfer", SEND, 7),
        Span(13.0, 14.0, "auxiliary", Loss(0, 0), 7),
    ],
    [
        Span(11.0, 12.0, "starved", None, 6),
        Span(12.0, 12.25, "transfer", RECEIVE, 6),
        Span(12.25, 15.0, "compute", Backward(0, 0), 6),
        Span(15.0, 16.0, "optimizer", Step(0), 6),
    ],
]


@pytest.mark.parametrize(
    ("kind", "instruction", "category"),
    [
        ("compute", Forward(0, 0), "forward"),
        ("compute", Loss(0, 0), "forward"),
        ("compute", Backward(0, 0), "backward"),
        ("compute", BackwardInput(0, 0), "backward"),
        ("compute", BackwardWeight(0, 0), "backward"),
        ("auxiliary", Loss(0, 0), "auxiliary"),
        ("optimizer", Step(0), "optimizer"),
        ("transfer", SEND, "send"),
        ("transfer", RECEIVE, "receive"),
        ("data", NextBatch(), "data"),
        ("average", FinishAverage(0), "average"),
        ("starved", None, "idle"),
        ("starved", RECEIVE, "idle"),  # on CUDA, the device waits while it receives
        ("blocked", None, "idle"),
        ("snapshot", None, "snapshot"),
    ],
)
def test_what_a_span_counts_as(kind: str, instruction: Any, category: str) -> None:
    assert Span(0.0, 1.0, kind, instruction, 0).category == category


def test_the_trace_has_all_stages_on_one_clock() -> None:
    events = timeline.trace(Traced(LANES, ["0", "1"], ["cpu", "cuda:1"], "a title"))["traceEvents"]
    names = {
        event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"
    }
    assert names == {0: "stage 0 (cpu)", 1: "stage 1 (cuda:1)"}
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 9
    starved = next(event for event in spans if event["name"] == "starved")
    assert (starved["tid"], starved["ts"], starved["dur"]) == (1, 1e6, 1e6)
    sent = next(event for event in spans if event["cat"] == "send")
    assert sent["name"] == "SendActivations"
    assert sent["args"] == {"batch": 7, "kind": "transfer", "peer": 1, "chunk": 0, "micro_batch": 0}


def arrows(lanes: list[list[Span]], replicas: int = 1) -> list[tuple[Any, ...]]:
    """Return, for each arrow, its name, and process and time of its start and of its end."""
    count = len(lanes)
    traced = Traced(lanes, ["s"] * count, ["cpu"] * count, "", replicas)
    made = timeline.trace(traced)["traceEvents"]
    begins = {event["id"]: event for event in made if event["ph"] == "s"}
    ends = {event["id"]: event for event in made if event["ph"] == "f"}
    assert begins.keys() == ends.keys()
    return [
        (one["name"], one["pid"], one["ts"], other["pid"], other["ts"])
        for number, one in begins.items()
        for other in (ends[number],)
    ]


def test_an_arrow_leads_from_a_send_to_the_receive_of_its_message() -> None:
    """Batch, micro-batch and channel are equal. A message from before the trace gets no arrow."""
    first = [
        Span(0.0, 1.0, "transfer", SendActivations(1, 0, 0), 7),
        Span(1.0, 2.0, "transfer", SendActivations(1, 0, 1), 7),
        Span(2.0, 3.0, "transfer", SendActivations(1, 0, 0), 8),
        Span(5.0, 7.0, "transfer", ReceiveGradients(1, 0, 0), 7),
    ]
    second = [
        Span(0.0, 0.5, "transfer", ReceiveActivations(0, 1, 1), 6),
        Span(1.0, 3.0, "transfer", ReceiveActivations(0, 1, 0), 7),
        Span(3.0, 3.5, "starved", ReceiveActivations(0, 1, 1), 7),
        Span(3.5, 4.0, "transfer", ReceiveActivations(0, 1, 1), 7),
        Span(4.0, 5.0, "transfer", SendGradients(0, 1, 0), 7),
    ]
    assert arrows([first, second]) == [
        ("gradients", 1, 4e6, 0, 6e6),
        ("activations", 0, 0.0, 1, 2e6),
        ("activations", 0, 1e6, 1, 3.75e6),
    ]


def test_an_arrow_stays_in_its_replica() -> None:
    lanes = [[Span(float(n), n + 1.0, "transfer", SendActivations(1, 0, 0), 7)] for n in range(2)]
    lanes += [
        [Span(n + 4.0, n + 6.0, "transfer", ReceiveActivations(0, 1, 0), 7)] for n in range(2)
    ]
    found = arrows(lanes, replicas=2)
    assert [(source, target) for _, source, _, target, _ in found] == [(0, 2), (1, 3)]


def test_the_picture_shows_the_time_in_which_all_stages_were_traced() -> None:
    assert window(LANES) == (11.0, 14.0)
    apart = [[Span(0.0, 1.0, "compute", FORWARD, 0)], [Span(3.0, 4.0, "compute", FORWARD, 0)]]
    assert window(apart) == (0.0, 4.0)


def test_the_picture_shows_a_few_batches_of_the_slowest_stage() -> None:
    """However many are traced, because channels let a stage get far ahead."""

    def lane(start_s: float, batch_s: float) -> list[Span]:
        spans = []
        for step in range(70):
            first_s = start_s + batch_s * step
            middle_s = first_s + batch_s / 2
            spans.append(Span(first_s, middle_s, "compute", FORWARD, step))
            spans.append(Span(middle_s, first_s + batch_s, "compute", Backward(0, 0), step))
        return spans

    assert window([lane(0.0, 2.0), lane(9.0, 5.0)]) == (9.0, 9.0 + 4 * 5.0)
    assert window([lane(0.0, 5.0), lane(9.0, 2.0)]) == (9.0, 10.0 + 4 * 5.0)
    assert window([lane(0.0, 1.0), [], lane(66.0, 5.0)]) == (66.0, 70.0)


RESTART = Restart(1, 12.5, 13.5, "the worker is gone", "Loss", "batch 3")


def _overlapping(events: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Return the pairs of bars of a track that overlap, which viewers refuse or draw wrongly."""
    bars = sorted((e["tid"], e["ts"], e["dur"], e["name"]) for e in events if e["ph"] == "X")
    return [
        (one, other)
        for one, other in pairwise(bars)
        if one[0] == other[0] and one[1] + one[2] > other[1] + 0.01
    ]


def test_a_restart_is_an_event_on_the_track_of_its_stage() -> None:
    """It may be the first event of all; a worker that lost its trace still has a track."""
    early = Restart(1, 8.0, 9.5, "first", "starting", None)
    late = Restart(1, 17.0, 19.0, "second", "Loss", "batch 3")
    for lanes in (LANES, [LANES[0], []]):
        made = timeline.trace(Traced(lanes, ["0", "1"], ["cpu"] * 2, "", restarts=[early, late]))
        events = made["traceEvents"]
        found = [event for event in events if event["name"] == "restart"]
        assert [(e["ph"], e["pid"], e["tid"], e["ts"], e["dur"]) for e in found] == [
            ("X", 1, 1, 0.0, 1.5e6),
            ("X", 1, 1, 9e6, 2e6),
        ]
        assert found[0]["args"] == {"error": "first", "phase": "starting", "batch": None}
        assert found[1]["args"] == {"error": "second", "phase": "Loss", "batch": "batch 3"}
        assert min(event["ts"] for event in events if event["ph"] == "X") == 0
        assert not _overlapping(events)
        json.dumps(made)


def test_the_picture_shows_a_restart_in_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never widens the picture, and the legend names it only if it is to be seen."""
    made = kept_figures(monkeypatch, timeline_picture)
    file, known = tmp_path / "timeline.png", Traced([LANES[0], []], ["0", "1"], ["cpu"] * 2, "")
    later = RESTART._replace(start_s=100.0, end_s=101.0)
    for restarts in ([RESTART], [later]):
        picture(file, known._replace(restarts=restarts))
    black = np.abs(imread(file)[:, :, :3]).max(axis=2) < 0.02
    seen, unseen = ([text.get_text() for text in f.legends[0].get_texts()] for f in made)
    assert ("restart of the stage" in seen, "restart of the stage" in unseen) == (True, False)
    picture(file, known._replace(restarts=[RESTART]))
    more = np.abs(imread(file)[:, :, :3]).max(axis=2) < 0.02
    assert more.sum() > black.sum() + 2000
    assert made[0].axes[0].get_xlim() == made[1].axes[0].get_xlim()


def test_the_picture_has_the_colour_of_what_is_done(tmp_path: Path) -> None:
    timeline.write(tmp_path, Traced(LANES, ["0", "1"], ["cpu", "cpu"], "a title"))
    image = imread(tmp_path / "timeline.png")[:, :, :3]
    for category in COLOURS.keys() - RARE:
        near = np.abs(image - np.array(to_rgb(COLOURS[category]))).max(axis=2) < 0.02
        found = int(near.sum())
        assert found > 200, f"{category}: {found} pixels"  # the legend alone has 300 pixels
    backward = np.abs(image - np.array(to_rgb(COLOURS["backward"]))).max(axis=2) < 0.02
    auxiliary = np.abs(image - np.array(to_rgb(COLOURS["auxiliary"]))).max(axis=2) < 0.02
    assert backward.sum() > 1.4 * auxiliary.sum()  # 1.75 s and 1 s of them are visible


def test_the_picture_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a legend for every colour, stages with devices, a whole title, and an axis in ms."""
    made = kept_figures(monkeypatch, timeline_picture)
    title = "a title of very many words " * 8
    picture(tmp_path / "timeline.png", Traced(LANES, ["0", "1"], ["cpu", "cuda:1"], title))
    (figure,) = made
    (axes,), (legend,) = figure.axes, figure.legends
    entries = {
        text.get_text(): patch.get_facecolor()[:3]
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    usual = {name: colour for name, colour in COLOURS.items() if name not in RARE}
    expected = {LEGEND.get(name, name): to_rgb(colour) for name, colour in usual.items()}
    assert entries == expected
    stages = [tick.get_text() for tick in axes.get_yticklabels()]
    assert stages == ["stage 0\ncpu", "stage 1\ncuda:1"]
    assert axes.get_xlabel() == "time in ms; numbers are those of batches (optimizer steps)"
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ["7", "7", "6"]
    lines = axes.get_title(loc="left").splitlines()
    assert " ".join(lines) == title.strip()
    renderer = figure.canvas.get_renderer()
    drawn = (axes.title, axes._left_title, legend)
    extents = [each.get_window_extent(renderer) for each in drawn]
    assert all(0 <= each.x0 <= each.x1 <= figure.bbox.x1 for each in extents)
    image = imread(tmp_path / "timeline.png")
    assert (image[:, :, 3:] == 1).all()
    assert (image[0, 0, :3] == 1).all()


def test_the_first_picture_of_a_process_ignores_the_users_matplotlib(tmp_path: Path) -> None:
    """An unknown backend, as a notebook's, kept the timeline from being drawn."""
    code = (
        "import sys; from pathlib import Path; from ppll_cli.observe.spans import Span, Traced\n"
        "from ppll_cli.observe.timeline_picture import picture\n"
        "lanes = [[Span(0.0, 1.0, 'starved', None, 0)]]\n"
        "picture(Path(sys.argv[1]), Traced(lanes, ['0'], ['cpu'], 'title', 1))\n"
    )
    environment = {**os.environ, "MPLBACKEND": "unknown", "HOME": "/dev/null"}
    path = tmp_path / "timeline.png"
    call = [sys.executable, "-c", code, str(path)]
    done = run_program(call, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.exists()


def test_a_title_says_how_fast_and_how_idle() -> None:
    summary = {
        "schedule": "gpipe",
        "model": "vit",
        "data": "digits",
        "batch_size": 64,
        "microbatches": 4,
        "train": {"samples_per_second": 510.2},
        "pipeline": {"bubble_fraction": 0.1731, "predicted_bubble_fraction": 0.1629},
    }
    assert timeline.title(summary) == (
        "gpipe, 4 micro-batches: vit on digits, batches of 64, 510 samples/s; "
        "bubble 0.173 measured, 0.163 predicted"
    )
    short = {**summary, "train": {"samples_per_second": None}, "microbatches": 1}
    short["pipeline"] = {"bubble_fraction": None, "predicted_bubble_fraction": None}
    assert timeline.title(short) == "gpipe: vit on digits, batches of 64"


def test_every_run_leaves_its_timeline(run: Runner) -> None:
    found = run("model.depth=2", "max_steps=20", "timeline=true", "data.eval_limit=8")
    assert imread(found.run_dir / "timeline.png").shape[1] > 1000
    saved = json.loads((found.run_dir / "timeline.json").read_text())
    spans = [event for event in saved["traceEvents"] if event["ph"] == "X"]
    assert {event["tid"] for event in spans} == {0, 1}
    assert {event["cat"] for event in spans} >= {"forward", "backward", "auxiliary", "optimizer"}
    flows = [event for event in saved["traceEvents"] if event["ph"] in "sf"]
    assert len(flows) >= 4
    # Stage 1 begins a batch only after stage 0 has sent it.
    sent = {e["args"]["batch"]: e["ts"] for e in spans if e["cat"] == "send"}
    received = {e["args"]["batch"]: e["ts"] + e["dur"] for e in spans if e["cat"] == "receive"}
    both = sorted(sent.keys() & received.keys())
    assert len(both) >= 2
    assert all(sent[batch] <= received[batch] for batch in both)


def test_a_timeline_can_be_switched_off(run: Runner) -> None:
    found = run("model.depth=2", "max_steps=10", "timeline=false", "data.eval_limit=8")
    assert not list(found.run_dir.glob("timeline.*"))


def test_a_picture_that_cannot_be_drawn_does_not_fail_the_run(
    run: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(timeline, "picture", full)
    found = run("model.depth=2", "max_steps=10", "timeline=true", "data.eval_limit=8")
    assert found.summary["status"] == "completed"
    assert "the timeline could not be written: No space left" in caplog.text
