"""The benchmark of network links: its runs, and the table of results."""

from pathlib import Path

import pytest

from ppll_cli.config import settings
from ppll_cli.predict import timing
from ppll_cli.predict.interconnect import Link
from scripts.benchmarks import network
from scripts.benchmarks.runs import RunFailedError
from tests.conftest import compose_config


@pytest.mark.parametrize("model", network.MODELS)
@pytest.mark.parametrize("name", network.ROWS)
def test_every_row_uses_two_devices_with_one_thread_each(model: str, name: str) -> None:
    config, _ = compose_config(list(network.overrides_of(model, name, steps=7)))
    found = settings.parse(config)
    assert (found.devices_asked, found.threads_per_worker, found.max_steps) == (2, 1, 7)
    assert found.transport["wire_dtype"] == ("bf16" if "bf16" in name else None)
    assert found.replicas == (2 if "replicas" in name else 1)


def test_speeds_are_relative_to_one_machine() -> None:
    speeds = {"one machine": [100.0, 90.0, 110.0], "unshaped": [95.0], "1 Gbit/s": [80.0]}
    row = {
        "samples_per_second": {**speeds, "200 Mbit/s": [50.0]},
        "bytes_per_batch": 2_345_678,
        "predicted": {"one machine": 103.0, "unshaped": 95.0, "1 Gbit/s": 88.0, "200 Mbit/s": 60.0},
    }
    result = {"models": {"vit": {"ppll": row, "ddp": {**row, "predicted": {}}}}}
    head, _, ppll, ddp = network.markdown(result).splitlines()
    assert head.startswith("| vit | samples/s on one machine | unshaped | 1 Gbit/s | 200 Mbit/s |")
    measured = "| 100 | 0.95 | 0.80 | 0.50 | 2.35 |"
    assert ppll == f"| ppll {measured} 1.03 | 1.00 | 1.10 | 1.20 |"
    assert ddp == f"| ddp {measured}  |  |  |  |"


def test_accuracies_have_a_median_and_a_range() -> None:
    _, _, line = network.markdown({"accuracy": {"ppll": [0.9, 0.7, 0.8]}}).splitlines()
    assert line == "| ppll | 0.8000 | 0.7000 | 0.9000 |"


def test_the_effect_of_bf16_is_measured_for_ppll_and_gpipe() -> None:
    assert set(network.LEARNT) == {"ppll", "ppll, bf16", "gpipe", "gpipe, bf16"}


@pytest.mark.slow
def test_both_ends_of_a_link_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, the link is the loopback interface."""
    # like scripts/benchmark
    monkeypatch.setenv("PYTHONPATH", str(Path(network.__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    found = network._at_ends(None, ["ping"])
    assert found["latency_s"] > 0
    assert found["bytes_per_second"] > 0
    tiny = ["data.size=8", "model.dim=16", "model.depth=2", "model.heads=2"]
    speed = network._at_ends(None, ["ddp", "1", "2", *network.overrides_of("vit", "ddp", 3), *tiny])
    assert speed > 0
    commands = [["sh", "-c", "echo why; exit 3"], ["true"]]
    with pytest.raises(RunFailedError, match="why"):
        network._side_by_side(commands, [{}, {}])


def test_a_speed_is_predicted_for_each_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slower link never makes a row faster. The speed of torch's own trainer is not predicted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    tiny = ("data.size=8", "model.dim=16", "model.depth=2", "model.heads=2")
    monkeypatch.setattr(network, "COMMON", (*network.COMMON, *tiny))
    fast, slow = Link(1e12)._asdict(), Link(1e3, latency_s=0.1)._asdict()
    links = {"unshaped": fast, "200 Mbit/s": slow}
    found = network.predicted("vit", "gpipe", links)
    assert found["one machine"] == pytest.approx(found["unshaped"], rel=0.01)
    assert found["200 Mbit/s"] < found["unshaped"] / 2
    assert network.predicted("vit", "ddp", links) == {}
