"""What a resumed run takes from the files of the run before."""

from pathlib import Path

import pytest

from ppll_cli.launch import beginning


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ('{"restarts": [{"stage": 1}, {"stage": 0}]}', [{"stage": 1}, {"stage": 0}]),
        ('{"status": "failed"}', []),
        ('{"restarts": {"stage": 1}}', []),
        ('{"restarts": ["stage", {"phase": "starting"}]}', []),
        ("[]", []),
        ("{", []),
        (None, []),
    ],
)
def test_restarts_of_stages_are_read_and_a_damaged_summary_has_none(
    tmp_path: Path, summary: str | None, expected: list[dict[str, object]]
) -> None:
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert beginning.restarts(tmp_path) == expected
