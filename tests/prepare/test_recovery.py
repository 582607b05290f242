"""Where a worker can be started again alone, and what is said where not."""

import pytest

from ppll_cli.errors import ConfigError
from tests.conftest import prepared, shared_memory

DATA = ["data=synthetic", "data.size=8", "data.train_samples=40", "data.test_samples=8"]
VIT = ["model.dim=16", "model.depth=2", "model.heads=2", "batch_size=8"]

OBSTACLES = {
    "bp": (["schedule=bp"], "gradients"),
    "1f1b": (["schedule=1f1b"], "gradients"),
    "ll": (["schedule=ll"], "only one stage"),
    "one stage": (["gpus=1"], "only one stage"),
    "replicas": (["gpus=4", "replicas=2"], "replicas"),
    "queue": (["transport=queue"], "transport=ring"),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_where_it_cannot_be(case: str) -> None:
    overrides, problem = OBSTACLES[case]
    with pytest.raises(ConfigError, match=rf"^recover=stage: .*{problem}"):
        prepared(*DATA, *VIT, *overrides, "recover=stage")
    found = prepared(*DATA, *VIT, *overrides, "recover=auto")
    assert not found.job.recovers
    (note,) = [each for each in found.notes if each.startswith("recover=auto")]
    assert problem in note
    assert not prepared(*DATA, *VIT, *overrides).job.recovers


@pytest.mark.parametrize("name", ["auto", "stage"])
def test_where_it_can(name: str) -> None:
    found = prepared(*DATA, *VIT, f"recover={name}", "recover.every=5")
    assert found.job.recovers
    assert not [note for note in found.notes if "recover" in note]
    plain = prepared(*DATA, *VIT).job
    for channel, room in plain.channels.items():
        more = found.job.channels[channel]
        assert (more.slots, more.size) == (room.slots + 5 + 1, room.size)


def test_a_key_without_the_option_that_uses_it_gets_a_note() -> None:
    found = prepared(*DATA, *VIT, "recover.every=4")
    assert "recover.every=4 changes nothing with recover=off" in found.notes
    assert not [note for note in prepared(*DATA, *VIT).notes if "recover" in note]


def test_shared_memory_must_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_memory(monkeypatch, 20 << 10)
    with pytest.raises(ConfigError, match=r"enlarge /dev/shm to .* or a smaller recover\.every"):
        prepared(*DATA, *VIT, "recover=stage")
    assert not prepared(*DATA, *VIT, "recover=auto").job.recovers
