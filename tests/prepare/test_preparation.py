"""The job that settings give. `tests/cli/bad_input` has most settings that are refused."""

import logging
import pickle
from pathlib import Path

import pytest
import torch

from ppll_cli.config import settings
from ppll_cli.errors import ConfigError
from ppll_cli.job import devices as machine_devices
from ppll_cli.prepare import preparation as preparing
from ppll_cli.prepare.preparation import Prepared
from tests.conftest import own_model, prepared, pretend_devices

DATA = ["data=synthetic", "data.size=8", "data.train_samples=53", "data.test_samples=7"]
SMALL = [*DATA, "batch_size=8", "model.dim=16", "model.depth=4", "model.heads=2", "device=cpu"]
NARROW = [*DATA, "batch_size=13", "model=resnet18", "local=dgl", "device=cpu"]  # 53 = 4 * 13 + 1


RESNET = [*DATA, "batch_size=8", "model=resnet32", "device=cpu"]
WATCHING = "local._target_=tests.watching.Watching"


def test_a_partition_named_by_the_model_sets_the_modules() -> None:
    result = prepared(*RESNET, "local.cuts=K4", "local.modules=4")
    modules = [[result.job.names[index] for index in units] for units in result.job.layout.modules]
    assert [(units[0], units[-1]) for units in modules] == [
        ("stem", "layer1.2"),
        ("layer1.3", "layer2.1"),
        ("layer2.2", "layer3.0"),
        ("layer3.1", "head"),
    ]
    assert [len(result.job.layout.of(stage)) for stage in (0, 1)] == [2, 2]


@pytest.mark.parametrize("schedule", ["bp", "gpipe"])
def test_back_propagation_ignores_named_partitions(schedule: str) -> None:
    assert len(prepared(*RESNET, "local.cuts=K8", f"schedule={schedule}").job.layout.modules) == 1


def test_batch_norm_of_a_single_value_is_refused_before_training() -> None:
    """The last batch has one sample. BatchNorm in the auxiliary network's perceptron is refused."""
    with pytest.raises(ConfigError, match=r"batch_size=13: leaves a micro-batch of one sample"):
        prepared(*NARROW)
    prepared(*NARROW, "data.drop_last=true")
    prepared(*NARROW, "batch_size=12")
    with pytest.raises(ConfigError, match=r"BatchNorm"):
        prepared(*NARROW, "batch_size=12", "schedule=gpipe", "schedule.microbatches=12")


@pytest.mark.parametrize(
    ("found", "overrides", "devices"),
    [
        (0, ["gpus=2"], ["cpu", "cpu"]),
        (2, ["gpus=2"], ["cuda:0", "cuda:1"]),
        (4, ["gpus=2"], ["cuda:0", "cuda:1"]),
        (1, [], ["cpu", "cpu"]),
        (2, [], ["cuda:0", "cuda:1"]),
        (1, ["schedule=bp", "gpus=2"], ["cuda:0"]),
        (2, ["gpus=3", "oversubscribe=true"], ["cuda:0", "cuda:1", "cuda:0"]),
        (2, ["gpus=3", "device=cpu"], ["cpu", "cpu", "cpu"]),
        (1, ["gpus=2"], "gpus=2: this machine has 1 CUDA device; use gpus=1, device=cpu, or ove"),
        (1, ["device=cuda"], "gpus=2: this machine has 1 CUDA device"),
    ],
)
def test_devices_are_chosen_from_those_that_exist(
    monkeypatch: pytest.MonkeyPatch, found: int, overrides: list[str], devices: list[str] | str
) -> None:
    pretend_devices(monkeypatch, found)
    arguments = [*SMALL, "device=auto", *overrides]
    if isinstance(devices, str):
        with pytest.raises(ConfigError, match=devices):
            prepared(*arguments)
        return
    result = prepared(*arguments)
    assert list(result.job.devices) == devices
    assert result.emulated == (len(set(devices)) < len(devices) and devices[0] != "cpu")


@pytest.mark.parametrize("schedule", ["bp", "ll", "pp", "gpipe", "1f1b", "ppll"])
def test_notes_name_the_settings_that_a_schedule_does_not_use(schedule: str) -> None:
    notes = "\n".join(prepared(*SMALL, f"schedule={schedule}", "schedule.microbatches=2").notes)
    assert ("this schedule does not split batches, so 1 is used" in notes) == (
        schedule in ("ll", "pp", "ppll")
    )
    assert ("this schedule uses one device" in notes) == (schedule in ("bp", "ll"))
    assert ("BatchNorm" in notes) == (schedule in ("bp", "gpipe", "1f1b"))


UNUSED = [
    ("optim.momentum=0.9", "optim=adamw", "optim=sgd"),
    ("optim.betas=[0.8,0.9]", "optim=sgd", "optim=adamw"),
    ("optim.milestones=[1.5]", "optim.schedule=cosine", "optim.schedule=step"),
    ("optim.gamma=0.5", "optim.schedule=constant", "optim.schedule=step"),
    ("optim.warmup_lr=0.001", "optim.schedule=cosine", "optim.schedule=cosine_by_epoch"),
    ("sync_batchnorm=true", "replicas=1", "replicas=2"),
]


@pytest.mark.parametrize(("given", "without", "needs"), UNUSED)
def test_a_note_names_a_setting_that_has_no_effect(given: str, without: str, needs: str) -> None:
    """Such a setting was accepted without a word."""
    (note,) = [n for n in prepared(*SMALL, without, given).notes if "has no effect" in n]
    assert note.replace(", ", ",").startswith(f"{given} has no effect: it is only for {needs}")
    assert not [n for n in prepared(*SMALL, needs, given).notes if "has no effect" in n]


def test_a_note_says_that_nothing_travels_between_machines() -> None:
    note = "transport.wire_dtype=bf16 has no effect: it is only for several machines"
    assert note in prepared(*SMALL, "transport.wire_dtype=bf16").notes


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_no_note_names_a_value_of_an_option(name: str) -> None:
    for schedule in ("constant", "step", "cosine", "cosine_by_epoch"):
        settings = [f"optim={name}", f"optim.schedule={schedule}"]
        found = prepared(*SMALL, *settings, "optim.warmup_epochs=0").notes
        assert not [note for note in found if "has no effect" in note]


def test_a_note_says_that_the_warm_up_takes_all_epochs() -> None:
    note = "optim.warmup_epochs=2: with epochs=2 the learning rate only rises; give a smaller "
    note += "optim.warmup_epochs, or more epochs"
    assert note in prepared(*SMALL, "epochs=2").notes
    assert not [each for each in prepared(*SMALL, "epochs=3").notes if "learning rate" in each]


def test_a_note_says_that_there_are_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_devices, "usable_cores", lambda: 4)
    assert not [n for n in prepared(*SMALL, "gpus=2", "threads=2").notes if "cores" in n]
    (note,) = [n for n in prepared(*SMALL, "gpus=3", "threads=2").notes if "cores" in n]
    assert note == "3 worker(s) with 2 thread(s) each share 4 cores: they will wait for one another"


def test_compiling_on_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=r"compile=true: .*C.. compiler.*install g"):
        prepared(*SMALL, "compile=true")
    monkeypatch.setattr("shutil.which", lambda name: name if name == "my-compiler" else None)
    monkeypatch.setenv("CXX", "my-compiler")
    assert prepared(*SMALL, "compile=true").job.settings.compile


def test_threads_are_divided_by_the_given_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bp` and `ll` divide threads too. Otherwise comparisons with `ppll` would not be fair."""
    monkeypatch.setattr(settings, "usable_cores", lambda: 8)
    for schedule in ("bp", "ll", "ppll"):
        assert prepared(*SMALL, f"schedule={schedule}", "gpus=2").job.threads == 4
    assert prepared(*SMALL, "schedule=bp", "gpus=1").job.threads == 8
    assert prepared(*SMALL, "gpus=6").job.threads == 1
    assert prepared(*SMALL, "gpus=6", "threads=3").job.threads == 3


def test_a_job_keeps_its_threads_on_a_machine_with_other_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: 8)
    job = prepared(*SMALL, "gpus=2").job
    monkeypatch.setattr(settings, "usable_cores", lambda: 2)
    assert pickle.loads(pickle.dumps(job)).threads == 4


def test_preparing_draws_no_random_numbers_and_logs_no_warnings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        prepared(*SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not caplog.records


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_model_that_writes_a_target_is_refused(name: str) -> None:
    """If a unit wrote a target, the target would get a gradient."""
    with pytest.raises(ConfigError, match=rf"unit 'first' writes '{name}', the name of a tensor"):
        prepared(*DATA, "batch_size=8", "device=cpu", *own_model("Writes", written=name))


@pytest.mark.parametrize("in_training", [False, True])
def test_a_chunk_that_changes_its_input_in_place_is_refused(in_training: bool) -> None:
    """Torch does not allow this for a tensor whose gradient goes back to another chunk.

    Under local learning, the change showed in another tensor of the same memory, but only if both
    were on the same stage.
    """
    model = own_model("InPlace", in_training=in_training)
    case = [*DATA, *model, "batch_size=8", "device=cpu", "gpus=2", "partition=manual"]
    refused = r"unit 'fourth' changes its input 'x' in place.*for example with inplace=False"
    for schedule in ("pp", "zb_h1", "ppll"):
        with pytest.raises(ConfigError, match=refused):
            prepared(*case, f"schedule={schedule}", "partition.cuts=[fourth]")
    prepared(*case, "schedule=pp", "partition.cuts=[third]")
    prepared(*case, "schedule=ppll", "partition.cuts=[third]")


@pytest.mark.parametrize(("third", "name"), [("name", "other"), ("shape", "x")])
@pytest.mark.parametrize("schedule", ["pp", "ppll"])
def test_a_chunk_that_changes_a_view_of_its_input_in_place_is_refused(
    schedule: str, third: str, name: str
) -> None:
    case = [*DATA, *own_model("InPlace", third=third), "batch_size=8", "device=cpu", "gpus=2"]
    case += ["partition=manual", f"schedule={schedule}"]
    with pytest.raises(ConfigError, match=f"unit 'fourth' changes its input '{name}' in place"):
        prepared(*case, "partition.cuts=[third]")
    prepared(*case, "partition.cuts=[last]")


def test_the_file_of_a_schedule_need_not_have_the_key_microbatches() -> None:
    """It was refused as `schedule.microbatches=null`, which nobody had written."""
    job = prepared(*SMALL, "schedule=ppll", "~schedule.microbatches").job
    assert job.make_schedule().microbatches == 1


def test_only_local_learning_uses_watched_units() -> None:
    """Under back-propagation, the only loss is that of the task."""
    modules = ["model.depth=2", "local.cuts=[blocks.1,head]", WATCHING, "+local.lag=3"]
    job = prepared(*SMALL, *modules, "gpus=3").job
    assert {c: (w.unit, w.lag) for c, w in job.routes.watches.items()} == {0: (2, 3), 1: (3, 3)}
    assert job.crossing()[1, 0] == {"weights.blocks.1"}
    assert {unit: each.name for unit, each in job.watched.items()} == {2: "blocks.1", 3: "head"}
    assert not prepared(*SMALL, *modules, "schedule=bp").job.watched


def test_a_users_local_method_can_replace_greedy() -> None:
    """Keys of `greedy` that are null are not passed to it."""
    own = prepared(*SMALL, WATCHING, "+local.lag=3", "local.modules=2").job
    assert "detection_head" not in own.local
    with pytest.raises(ConfigError, match=r"^local\.detection_head=level: .*has no such option"):
        prepared(*SMALL, WATCHING, "+local.lag=3", "local.detection_head=level")


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["fba=on", "gpus=2"], "fba=on is the same as local=fba here: no auxiliary"),
        (["fba=on", "schedule=bp"], "fba=on has no effect here: only ll and ppll use"),
        (["fba=on", "gpus=3"], None),
        (["fba=on", "gpus=2", "fba.fusion=none"], None),
        (["local=fba", "gpus=2"], None),
    ],
)
def test_a_note_says_that_nothing_reads_the_bank(overrides: list[str], note: str | None) -> None:
    notes = [line for line in prepared(*SMALL, *overrides).notes if line.startswith("fba")]
    assert len(notes) == (note is not None)
    assert all(line.startswith(note or "") for line in notes)


def test_auxiliary_costs_include_all_that_the_loss_computes() -> None:
    """InfoPro also has a decoder that reconstructs the image."""
    modules = ["gpus=1", "schedule=ll", "local.modules=4"]
    (first, *_), resnet = (
        prepared(
            *DATA, "batch_size=8", "device=cpu", "model=resnet32", "model.depth=8", *choice
        ).auxiliary_costs
        for choice in (["local=infopro", *modules], ["local=greedy", *modules])
    )
    # Maps are 8 x 8 with 16 channels. The head has a convolution to 4 x 4 and a perceptron; the
    # decoder has two convolutions to the image.
    head = 2 * (9 * 16 * 32 * 4 * 4 + 32 * 128 + 128 * 10)
    decoder = 2 * (9 * 16 * 12 * 8 * 8 + 9 * 12 * 3 * 8 * 8)
    assert first.flops == head + decoder
    assert resnet[0].flops == 2 * 16 * 10
    assert resnet[-1].params == resnet[-1].flops == 0


def test_auxiliary_costs_include_the_options_of_the_bank() -> None:
    """Maps are 16 x 8 x 8, 16 x 8 x 8, 32 x 4 x 4 and 64 x 2 x 2, and each unit is a module."""
    case = [*DATA, "batch_size=8", "device=cpu", "model=resnet32", "model.depth=8", "gpus=4"]

    def with_bank(*options: str) -> Prepared:
        return prepared(*case, "local.modules=5", *options)

    alone = with_bank("local=fba").auxiliary_costs
    bank, probe, entry = (
        with_bank("fba=on", *option) for option in ([], ["fba.trains=probe"], ["fba.join=input"])
    )
    pairs = list(zip(alone, bank.auxiliary_costs, probe.auxiliary_costs, strict=True))
    for _, banked, probed in pairs[1:-1]:  # one more classifier of 64 features
        assert probed.params - banked.params == 65 * 10
        assert probed.flops - banked.flops == 2 * 64 * 10
    assert len({(each.params, each.flops) for each in pairs[0]}) == 1
    # Two banked maps are projected to the 32 channels of the third module, and three maps mixed.
    found, without = entry.auxiliary_costs[2], alone[2]
    assert found.params - without.params == 2 * (16 + 1) * 32 + (3 * 32 + 1) * 32
    assert found.flops - without.flops == 2 * 4 * 4 * (2 * 16 * 32 + 3 * 32 * 32)
    assert entry.job.specs[3]["bank.0"].shape == (16, 8, 8)
    assert probe.job.specs[3]["bank.0"].shape == bank.job.specs[3]["bank.0"].shape == (16,)


def test_only_a_profile_needs_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users without a home folder were once refused even if the run needed no profile."""

    def homeless() -> Path:
        raise ConfigError("data.root", "null", "there is no home folder to keep data in")

    monkeypatch.setattr(preparing, "cache_root", homeless)
    prepared(*SMALL)
    with pytest.raises(ConfigError, match="there is no home folder"):
        prepared(*SMALL, "partition=profile")
