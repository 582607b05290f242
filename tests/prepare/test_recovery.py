"""Where a worker can be started again alone, and what is said where not."""

from dataclasses import replace

import pytest

from ppll_cli.config.sections import Recover
from ppll_cli.config.settings import parse
from ppll_cli.errors import ConfigError
from ppll_cli.job.snapshots import MARGIN
from ppll_cli.prepare.preparation import Prepared, prepare
from ppll_cli.prepare.recovery import FEWEST, MOST, USUAL, planned
from ppll_cli.prepare.spread import Machine
from ppll_cli.transport.journal import head_bytes
from tests.conftest import compose_config, prepared, shared_memory

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
    assert not found.job.restartable
    (note,) = [each for each in found.notes if each.startswith("recover=auto")]
    assert problem in note
    assert not prepared(*DATA, *VIT, *overrides).job.restartable


@pytest.mark.parametrize("name", ["auto", "stage"])
def test_where_it_can(name: str) -> None:
    found = prepared(*DATA, *VIT, f"recover={name}", "recover.every=5")
    assert found.job.restartable
    assert not [note for note in found.notes if "recover" in note]
    plain = prepared(*DATA, *VIT).job
    for channel, room in plain.channels.items():
        more = found.job.channels[channel]
        assert (more.slots, more.size) == (room.slots + 5 + 1, room.size)


def on_machines(count: int, *overrides: str, machine: int = 0) -> Prepared:
    """Return a run that is prepared on one of several machines."""
    config, _ = compose_config(["device=cpu", *DATA, *VIT, "model.depth=4", *overrides])
    return prepare(parse(config), "unused", [Machine.here()] * count, machine)


def test_a_stage_next_to_another_machine_does_not_restart() -> None:
    found = on_machines(2, "gpus=4", "recover=stage", "recover.every=5")
    assert found.job.restartable == {0, 3}
    (note,) = [note for note in found.notes if "recover" in note]
    assert note.startswith("recover=stage: a failure of stage 1 or stage 2 ends the run")
    plain = on_machines(2, "gpus=4").job
    assert not plain.restartable
    more = [
        found.job.channels[channel].slots - room.slots for channel, room in plain.channels.items()
    ]
    assert more == [5 + 1, 0, 5 + 1]


def test_if_every_stage_is_next_to_another_machine_none_restarts() -> None:
    with pytest.raises(ConfigError, match=r"^recover=stage: every stage .* another machine"):
        on_machines(2, "gpus=2", "recover=stage")
    assert not on_machines(2, "gpus=2", "recover=auto").job.restartable


def test_each_machine_needs_shared_memory_only_for_its_own_stages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stages of the middle machine do not restart, so it needs none for snapshots."""
    common = ["gpus=6", "recover=stage"]
    free = [on_machines(3, *common, machine=n).job.snapshot_every for n in range(3)]
    assert free[1] == USUAL
    shared_memory(monkeypatch, 1)
    middle = on_machines(3, *common, machine=1).job
    assert middle.restartable == {0, 5}
    assert middle.snapshot_every == USUAL
    for machine in (0, 2):
        with pytest.raises(ConfigError, match=f"machine {machine}'s channels .*enlarge /dev/shm"):
            on_machines(3, *common, machine=machine)


@pytest.mark.parametrize(("schedule", "recovers"), [("bp", False), ("ppll", True)])
def test_a_plan_has_it_where_it_can_be(schedule: str, recovers: bool) -> None:
    found = prepared(*DATA, *VIT, f"schedule={schedule}", "recover=auto")
    settings = found.job.settings
    recover = settings.recover.model_copy(update={"name": "stage"})
    job = replace(
        found.job, snapshot_every=0, settings=settings.model_copy(update={"recover": recover})
    )
    made, obstacle = planned(job, found.subject)
    assert bool(made.restartable) == recovers
    assert bool(obstacle) != recovers
    assert made.snapshot_every == found.job.snapshot_every


def test_a_plan_does_not_depend_on_the_shared_memory_of_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = prepared(*DATA, *VIT, "recover=auto")
    shared_memory(monkeypatch, 1)
    job, obstacle = planned(replace(found.job, snapshot_every=0), found.subject)
    assert (job.snapshot_every, obstacle) == (found.job.snapshot_every, "")
    off = found.job.settings.model_copy(update={"recover": Recover()})
    assert not planned(replace(found.job, snapshot_every=0, settings=off), found.subject)[
        0
    ].restartable


def test_on_cuda_a_plan_says_what_recovery_needs() -> None:
    found = prepared(*DATA, *VIT, "recover=stage")
    job = replace(found.job, snapshot_every=0, devices=("cuda:0", "cuda:1"))
    made, obstacle = planned(job, found.subject)
    assert not made.restartable
    assert "other last bits" in obstacle


def chosen(*overrides: str) -> tuple[int, list[str]]:
    """Return the number of messages that the program has chosen, and what it says of it."""
    found = prepared(*DATA, *VIT, *overrides)
    return found.job.snapshot_every, [note for note in found.notes if "recover" in note]


def test_the_program_chooses_how_often_to_save() -> None:
    """Usually 16; more where so many messages take no more memory than the snapshots."""
    large, small = ["batch_size=40"], ["model.dim=64", "batch_size=1"]
    assert chosen(*large, "recover=stage") == (
        USUAL,
        ["recover=stage: a stage saves its state after at most 16 messages (recover.every)"],
    )
    assert chosen(*large, "recover=auto")[0] == USUAL
    assert chosen(*small, "recover=stage")[0] == MOST
    assert USUAL < chosen("recover=stage")[0] < MOST
    found = prepared(*DATA, *VIT, "recover=stage")
    params = sum(cost.params for cost in (*found.subject.costs, *found.auxiliary_costs))
    (room,) = found.job.channels.values()
    message = room.size + head_bytes(room.size)
    assert found.job.snapshot_every == 2 * 3 * 4 * params // message  # AdamW's two values as well
    momentum = ["recover=stage", "batch_size=4", "optim=sgd", "optim.momentum=0.9"]
    (room,) = prepared(*DATA, *VIT, *momentum).job.channels.values()
    expected = 2 * 2 * 4 * params // (room.size + head_bytes(room.size))
    assert USUAL < expected < MOST
    assert chosen(*momentum)[0] == expected


@pytest.mark.parametrize("name", ["auto", "stage"])
def test_where_shared_memory_is_short_stages_save_more_often(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    large = prepared(*DATA, *VIT, "batch_size=40", f"recover={name}")
    (room,) = large.job.channels.values()
    message = room.size + head_bytes(room.size)
    params = sum(cost.params for cost in (*large.subject.costs, *large.auxiliary_costs))
    whole = MARGIN * 2 * 3 * 4 * params + room.slots * message
    for every in (USUAL, 5, FEWEST):
        shared_memory(monkeypatch, round((whole - (USUAL - every) * message) / 0.9) + 1)
        found, notes = chosen("batch_size=40", f"recover={name}")
        assert found == every
        assert len(notes) == 1
        assert ("instead of 16, because /dev/shm has room for 0 MiB" in notes[0]) == (every < USUAL)
    shared_memory(monkeypatch, round((whole - (USUAL - FEWEST) * message) / 0.9) - message)
    with pytest.raises(ConfigError, match="enlarge /dev/shm to") as refused:
        chosen("batch_size=40", "recover=stage")
    assert "recover.every" not in str(refused.value)


def test_a_key_without_the_option_that_uses_it_gets_a_note() -> None:
    found = prepared(*DATA, *VIT, "recover.every=4")
    assert "recover.every=4 changes nothing with recover=off" in found.notes
    assert not [note for note in prepared(*DATA, *VIT).notes if "recover" in note]


def test_a_number_of_the_user_is_never_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("recover=stage", "recover.every=1000") == (1000, [])
    usual, _ = chosen("recover=stage")
    shared_memory(monkeypatch, 400 << 10)
    assert FEWEST <= chosen("recover=stage")[0] < usual
    with pytest.raises(ConfigError, match=r"enlarge /dev/shm to .* or a smaller recover\.every"):
        chosen("recover=stage", "recover.every=1000")
    assert not prepared(*DATA, *VIT, "recover=auto", "recover.every=1000").job.restartable
