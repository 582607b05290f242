"""A run of an older version resumes. Keys that its record lacks get the values in effect then."""

import json
from pathlib import Path
from typing import Any

import pytest

from ppll_cli.config.settings import parse
from ppll_cli.config.targets import make
from ppll_cli.errors import ConfigError
from tests.launch.recorded_runs import change, write_config


def older(folder: Path, *lacking: str) -> None:
    """Remove keys from a record."""
    record = json.loads((folder / "config.json").read_text())
    for key in lacking:
        group, _, name = key.rpartition(".")
        del (record[group] if group else record)[name]
    (folder / "config.json").write_text(json.dumps(record))


def in_effect(config: dict[str, Any], key: str) -> Any:
    """Return the value that a run uses for a key."""
    group, _, name = key.rpartition(".")
    parsed = parse(config)
    return getattr(make(group, getattr(parsed, group)) if group else parsed, name)


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [("recompute", False, "true"), ("log_every", 10, "3"), ("log_grad_norm", False, "true")],
)
def test_a_run_older_than_a_free_key_resumes_with_its_default_or_another_value(
    folder: Path, key: str, value: object, other: str
) -> None:
    older(folder, key)
    assert in_effect(change(folder)[0], key) == value
    assert in_effect(change(folder, f"{key}={other}")[0], key) == json.loads(other)


@pytest.mark.parametrize(
    ("lacking", "key", "value"),
    [
        (["model.drop_path"], "model.drop_path", 0.0),
        (["data.mixup", "data.cutmix"], "data.mixup", 0.0),
        (["data.mixup", "data.cutmix"], "data.cutmix", 0.0),
    ],
)
def test_a_run_older_than_a_key_of_its_training_resumes_only_with_the_default(
    folder: Path, lacking: list[str], key: str, value: object
) -> None:
    older(folder, *lacking)
    config, _ = change(folder, "max_steps=9")
    assert in_effect(config, key) == value
    with pytest.raises(ConfigError, match=rf"^{key}=0\.2: the run was started with no such"):
        change(folder, f"{key}=0.2")


def test_a_run_with_the_removed_transport_naive_resumes_with_queue(tmp_path: Path) -> None:
    """The run keeps the depth of its channels."""
    target = "ppll_cli.transport.naive.NaiveTransport"
    folder = write_config(tmp_path / "run", transport={"_target_": target, "depth": 3})
    record = json.loads((folder / "config.json").read_text())
    record["choices"]["transport"] = "naive"
    (folder / "config.json").write_text(json.dumps(record))
    config, choices = change(folder)
    queue = "ppll_cli.transport.queue.QueueTransport"
    assert config["transport"] == {"_target_": queue, "depth": 3}
    assert choices["transport"] == "queue"
    for key in record.keys() - {"transport", "choices", "format", "resume"}:
        assert config[key] == record[key]
    config, choices = change(folder, "transport=ring")
    assert config["transport"]["_target_"] == "ppll_cli.transport.ring.RingTransport"
    assert choices["transport"] == "ring"
