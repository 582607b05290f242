"""Headers and reports are sent over a network as JSON."""

import json

import pytest

from ppll_cli.job.course import EvaluationBatch, Item, TrainBatch, Version
from ppll_cli.job.links import Header
from ppll_cli.job.manifest import SavedFile
from ppll_cli.job.spelling import read, spelled
from ppll_cli.observe.spans import Span
from ppll_cli.pipeline.instructions import Checkpoint, Forward, NextBatch

REPORT = {
    "kind": "done",
    "stage": 1,
    "instruction_s": {Forward(0, 1): 0.25, NextBatch(): 0.5},
    "bytes_sent": {0: 12, 2: 0},
    "trace": [Span(0.5, 1.0, "compute", Forward(0, 1), 3), Span(1.0, 2.0, "starved", None, 3)],
    "file": SavedFile("stage-1.safetensors", 12, "ab"),
    "peak": None,
    "loss": float("nan"),
}


def test_a_report_survives_the_trip_through_json() -> None:
    found = read(json.loads(json.dumps(spelled(REPORT))))
    assert found.pop("loss") != found.get("loss")
    assert found == {key: value for key, value in REPORT.items() if key != "loss"}


@pytest.mark.parametrize(
    "item", [TrainBatch(3, 0, 3, 8), EvaluationBatch("test", 0, 8), Version(-1), Checkpoint(2, 1)]
)
def test_a_header_survives_the_trip_through_json(item: Item | Version) -> None:
    header = Header(item, micro_batch=1, chunk=2)
    assert read(json.loads(json.dumps(spelled(header)))) == header


def test_values_of_unknown_types_are_refused() -> None:
    with pytest.raises(TypeError, match="other machines cannot contain"):
        spelled({"kind": object()})
