"""What a link costs: which runs, and the table of them."""

import pytest

from ppll_cli import settings
from ppll_cli.benchmarks import network
from tests.conftest import compose_config


@pytest.mark.parametrize("model", network.MODELS)
@pytest.mark.parametrize("name", network.ROWS)
def test_every_row_is_two_workers(model: str, name: str) -> None:
    config, _ = compose_config(list(network.overrides_of(model, name, steps=7)))
    found = settings.parse(config)
    assert (found.devices_asked, found.threads_per_worker, found.max_steps) == (2, 1, 7)
    assert found.transport["wire_dtype"] == ("bf16" if "bf16" in name else None)
    assert found.replicas == (2 if "replicas" in name else 1)


def test_speeds_are_relative_to_one_machine() -> None:
    speeds = {"one machine": [100.0, 90.0, 110.0], "unshaped": [95.0], "1 Gbit/s": [80.0]}
    row = {"samples_per_second": {**speeds, "200 Mbit/s": [50.0]}, "bytes_per_batch": 2_345_678}
    head, _, line = network.markdown({"models": {"vit": {"ppll": row}}}).splitlines()
    assert head.startswith("| vit | samples/s on one machine | unshaped | 1 Gbit/s | 200 Mbit/s |")
    assert line == "| ppll | 100 | 0.95 | 0.80 | 0.50 | 2.35 |"
