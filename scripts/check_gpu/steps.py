"""Defines the steps of the check, in groups.

If there are fewer devices than stages, workers share devices, and do not use NCCL.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ppll_cli.leaves import cuda
from ppll_cli.leaves.files import write_json
from scripts.check_gpu.equal import Equal, Interrupted, LostWorker, Restarted
from scripts.check_gpu.facts import Facts, Machine
from scripts.check_gpu.report import Outcome
from scripts.check_gpu.running import Check, Program, Step, Train, read_json, usable_width

PYTEST = ["-m", "pytest", "-p", "no:randomly", "-o", "filterwarnings=default", "-v", "-rfE"]
# A test that hangs must fail before its step's time limit, so that the step names the test. A
# thread ends it, because no signal handler runs while a call of CUDA hangs.
PYTEST += ["--timeout=75", "--timeout-method=thread"]
TWO = ["local.modules=2"]
PINNED = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Environment variables that make rings use pinned host memory, because processes cannot share the
device memory of this allocator."""


@dataclass(frozen=True)
class Group:
    """Steps, of which at most `width` run at the same time. `--only` uses the name."""

    name: str
    steps: Sequence[Step]
    width: int = 1


@dataclass(frozen=True)
class Benchmark:
    """A step that runs a benchmark of `scripts/benchmark`, given by its name and options."""

    name: str
    benchmark: Sequence[str]
    limit_s: float

    def act(self, check: Check) -> Outcome:
        """Run the benchmark, and copy its result file to the report."""
        arguments = ["-m", "scripts.benchmarks", *self.benchmark]
        outcome = Program(self.name, arguments, self.limit_s).act(check)
        found = read_json(Path("outputs/benchmark") / f"{self.benchmark[0]}.json")
        if outcome.state == "ok" and found is not None:
            write_json(check.report.folder / f"{self.benchmark[0]}.json", found)
        return outcome


def groups(check: Check) -> Iterator[Group]:
    """Yield all groups, the most important ones first, because time may run out."""
    width = usable_width(check.cuda)
    yield Group("facts", [Machine(), Facts()])
    yield Group("exact", exact(check), width)
    yield Group("equal", equal(check))
    yield Group("users", users(check), width)
    yield Group("numbers", numbers(check), width)
    yield Group("equal numbers", equal_numbers(check))
    if not check.quick:
        yield Group("tests", tests(check))
    yield Group("speed", speed(check))


def exact(check: Check) -> list[Step]:
    """Return runs with `deterministic=true`, whose weights `equal` compares bit for bit."""
    base = _exact(check)
    ppll = [*base, *TWO, "schedule=ppll", "gpus=2"]
    steps: list[Step] = [
        Train("ll", [*base, *TWO, "schedule=ll"]),
        Train("ppll", ppll),
        Train("ppll by queue", [*ppll, "transport=queue"]),
        Train("ppll by pinned memory", ppll, environment=PINNED),
        Train("ppll without IPC", [*ppll, "transport.ipc=false"]),
        Train("bp", [*base, "schedule=bp"]),
        Train("pp", [*base, "schedule=pp", "gpus=2"]),
        Train("bp accumulating", [*base, "schedule=bp", "schedule.microbatches=4"]),
        Train("gpipe", [*base, "schedule=gpipe", "gpus=2"]),
        Train("1f1b", [*base, "schedule=1f1b", "gpus=4"]),
        Train("interleaved", [*base, "schedule=interleaved", "gpus=2"]),
        Train("zb_h1", [*base, "schedule=zb_h1", "gpus=3"]),
    ]
    if _several(check):
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        alone = {"CUDA_VISIBLE_DEVICES": first}
        steps.append(Train("ppll on one device", ppll, environment=alone))
    return steps


def equal(check: Check) -> list[Step]:
    """Return the comparisons of the runs of `exact`."""
    steps: list[Step] = [
        Equal("ll = ppll", "ll", "ppll"),
        Equal("ring = queue", "ppll", "ppll by queue"),
        Equal("ring = pinned memory", "ppll", "ppll by pinned memory"),
        Equal("ring = ring without IPC", "ppll", "ppll without IPC"),
        Equal("pp = bp", "pp", "bp"),
        Equal("gpipe = bp accumulating", "gpipe", "bp accumulating"),
        Equal("1f1b = gpipe", "1f1b", "gpipe"),
        Equal("interleaved = gpipe", "interleaved", "gpipe"),
        Equal("zb_h1 = gpipe", "zb_h1", "gpipe"),
    ]
    if _several(check):
        steps.append(Equal("two devices = one device", "ppll", "ppll on one device"))
    return steps


def users(check: Check) -> list[Step]:
    """Return runs as users make them: other tasks, replicas, a lost worker, Ctrl-C."""
    base, write = _base(check), write_data(check.work)
    endless = [*_exact(check), *TWO, "schedule=ppll", "gpus=2", "checkpoint.every=20"]
    endless += ["epochs=100000", "eval_every=100000", "data=synthetic", "data.test_samples=64"]
    few = f"max_steps={2 if check.quick else 6}"
    scenes = ["data=fashion_scenes", f"data.root={write['fashion']}", "data.pictures=32"]
    scenes += ["data.test_pictures=4", "model=retinanet", "batch_size=4", few, "eval_every=100"]
    photos = ["data=photos", f"data.folders=[{write['photos']}]", "data.patches_per_epoch=64"]
    photos += ["model=edsr", "model.depth=4", "batch_size=8", few, "eval_every=100"]
    if check.quick:
        scenes += ["model.width=64", "data.short_side=64", "data.long_side=96"]
    ppll = [*base, "schedule=ppll", "gpus=2"]
    return [
        LostWorker("killed worker", endless, signal.SIGKILL),
        LostWorker("stopped worker", endless, signal.SIGSTOP),
        Restarted("restarted worker", endless),
        Interrupted("interrupt", endless),
        Train("detection", [*ppll, *scenes]),
        Train("super-resolution", [*ppll, *photos]),
        Train("replicas under bp", [*_exact(check), "schedule=bp", "replicas=2"]),
        Train(
            "replicas under ppll",
            [*_exact(check), *TWO, "schedule=ppll", "gpus=4", "replicas=2"],
        ),
        Train("partition=profile", [*ppll, "partition=profile", few]),
    ]


def numbers(check: Check) -> list[Step]:
    """Return runs with other precisions, with compiled units, and with other local methods."""
    exact_base, base = _exact(check), _base(check)
    few = f"max_steps={2 if check.quick else 6}"
    small = ["data=synthetic", "data.train_samples=256", "data.test_samples=64", few]
    small += ["batch_size=32", "eval_every=100", "schedule=ppll", "gpus=2"]
    bf16 = [*exact_base, *TWO, "precision=bf16"]
    manpp = [*exact_base, *TWO, few, "local=manpp"]
    # Options that no other step uses.
    varied = ["optim.ema=0.99", "recompute=true", "data.mixup=0.2", "data.cutmix=1.0"]
    steps: list[Step] = [
        Train("bf16 ll", [*bf16, "schedule=ll"]),
        Train("bf16 ppll", [*bf16, "schedule=ppll", "gpus=2"]),
        Train("manpp ll", [*manpp, "schedule=ll"]),
        Train("manpp ppll", [*manpp, "schedule=ppll", "gpus=2"]),
        Train("vit_blocks", [*base, *small, *varied, "local=vit_blocks", "model.drop_path=0.1"]),
        Train("resnet32 and auglocal", [*base, *small, "model=resnet32", "local=auglocal"]),
        Train("resnet18 and dgl", [*base, *small, "model=resnet18", "local=dgl"]),
        Train("resnet32 and infopro", [*base, *small, "model=resnet32", "local=infopro"]),
        Train("predsim", [*base, *small, "local=predsim"]),
        Train("feature bank", [*base, *small, "fba=on", "local.modules=4"]),
        Train(
            "clip and skip",
            [*base, few, "schedule=gpipe", "gpus=2", "optim.clip_norm=0.5", "optim.nonfinite=skip"],
        ),
    ]
    if check.cuda:  # tf32 is refused on the CPU
        steps.insert(
            2, Train("tf32", [*base, *TWO, few, "schedule=ppll", "gpus=2", "precision=tf32"])
        )
    if not check.quick:
        compiled = [*base, *TWO, "deterministic=true", "compile=true", "max_steps=12"]
        compiled += ["eval_every=100", "model.depth=4"]
        for name, schedule in (("ll", ["schedule=ll"]), ("ppll", ["schedule=ppll", "gpus=2"])):
            steps.append(
                Train(f"compiled {name}", [*compiled, *schedule], limit_s=150.0, stops=False)
            )
    return steps


def equal_numbers(check: Check) -> list[Step]:
    """Return the comparisons of the runs of `numbers`."""
    steps: list[Step] = [
        Equal("bf16: ll = ppll", "bf16 ll", "bf16 ppll"),
        Equal("manpp: ll = ppll", "manpp ll", "manpp ppll"),
    ]
    if not check.quick:
        steps.append(Equal("compiled: ll = ppll", "compiled ll", "compiled ppll"))
    return steps


def tests(check: Check) -> list[Step]:
    """Return the test suite's CUDA tests. Tests that need more devices are skipped."""
    several = ["-n", str(usable_width(check.cuda))]
    log = "pytest.log"
    channels = ["tests/transport", "-k", "cuda or Cuda or device or pinned or channel"]
    batches = ["tests/data", "tests/scripts/benchmarks/test_transport.py"]
    batches += ["-k", "cuda or gpu or device"]
    return [
        Program("tests of runs", [*PYTEST, *several, "tests/launch/test_cuda.py"], 150.0, log),
        Program("tests of channels", [*PYTEST, *several, *channels], 110.0, log),
        Program("tests of batches", [*PYTEST, *several, *batches], 90.0, log),
    ]


def speed(check: Check) -> list[Step]:
    """Return steps that measure speed, to run one at a time."""
    device = "cuda" if check.cuda else "cpu"
    steps: list[Step] = []
    if not check.quick:
        steps += [
            Benchmark("channels", ["transport"], 60.0),
            Benchmark("host's time a step", ["host", f"device={device}"], 90.0),
        ]
    never = ["eval_every=100000", "checkpoint.every=1000000", "data=synthetic"]
    vit = [*_base(check), *never, *TWO, f"max_steps={4 if check.quick else 500}"]
    vit += ["data.test_samples=64"]
    if check.quick:
        vit += _tiny()
    steps += [
        Train("vit ll, 1 stage", [*vit, "schedule=ll"], 60.0),
        Train("vit ppll, 2 stages", [*vit, "schedule=ppll", "gpus=2"], 60.0),
    ]
    large = [*_base(check), *never, "model=vit_base", "precision=bf16"]
    if check.quick:
        large += ["model.depth=4", "model.dim=64", "model.heads=2", "max_steps=2", "batch_size=16"]
        large += ["data.train_samples=64", "data.test_samples=16"]
    else:
        large += ["data.size=224", "data.train_samples=1280", "data.test_samples=16"]
        large += ["batch_size=128", "max_steps=40"]
    for schedule, stages in (("ll", 1), ("ppll", 2), ("ppll", 4), ("bp", 1), ("gpipe", 4)):
        local = ["local.modules=4"] if schedule in ("ll", "ppll") else []
        name = f"vit_base {schedule}, {stages} stage{'s' if stages > 1 else ''}"
        overrides = [*large, *local, f"schedule={schedule}", f"gpus={stages}"]
        steps.append(Train(name, overrides, 70.0))
    return steps


def write_data(folder: Path) -> Mapping[str, Path]:
    """Write small data sets of noise, so that nothing must be downloaded; return their folders."""
    from tests.data.scene_files import write_fashion

    fashion, photos = folder / "fashion", folder / "photos"
    if not fashion.exists():
        write_fashion(fashion, 400)
    photos.mkdir(exist_ok=True)
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        large = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
        large.save(photos / f"{number}.png")
    return {"fashion": fashion, "photos": photos}


def needed(all_groups: Sequence[Group], only: Sequence[str]) -> list[Group]:
    """Return the groups that `--only` names, or all groups if it names none.

    Runs and their comparison are two groups, such as `exact` and `equal`. If one of them is named,
    both are returned.
    """
    names = {*only} | ({"exact"} if "equal" in only else set())
    if {"numbers", "equal numbers"} & names:
        names |= {"numbers", "equal numbers"}
    if "exact" in names:
        names.add("equal")
    return [group for group in all_groups if not only or group.name in names]


def unavailable(check: Check) -> str | None:
    """Return why the check cannot run on this machine; None if it can."""
    if check.cuda and (reason := cuda.why_none()):
        return f"{reason}; DEVICE=cpu tries the check itself on the CPU"
    return None


def _several(check: Check) -> bool:
    return check.cuda and torch.cuda.device_count() > 1


def _base(check: Check) -> list[str]:
    shared = ["device=cuda", "oversubscribe=true"] if check.cuda else ["device=cpu"]
    return [*shared, "timeline=false", "threads=2" if check.cuda else "threads=1"]


def _exact(check: Check) -> list[str]:
    steps = 4 if check.quick else 60
    base = [*_base(check), "deterministic=true", f"max_steps={steps}", "eval_every=100"]
    return [*base, *_tiny()] if check.quick else base


def _tiny() -> list[str]:
    return ["model.dim=16", "model.depth=4", "model.heads=1", "batch_size=32", "data.eval_limit=32"]
