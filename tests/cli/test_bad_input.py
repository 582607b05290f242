"""The program finds every wrong value before a worker starts.

It exits with status 2, prints one line, and leaves no folder.
"""

import gzip
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import nn

from ppll_cli.cli import app
from ppll_cli.config.composition import GROUPS
from ppll_cli.data.dataset import Arrays, ImageDataset
from ppll_cli.data.files import Part
from ppll_cli.errors import ConfigError
from ppll_cli.launch import run as running
from ppll_cli.launch.record import CONFIG_FORMAT
from ppll_cli.leaves import forkserver
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.pipeline.instructions import Backward, Compute, Forward, SendActivations, Step
from ppll_cli.pipeline.schedule import Place, Schedule
from ppll_cli.pipeline.schedules.gpipe import GPipe
from ppll_cli.pipeline.schedules.ppll import PPLL
from ppll_cli.tasks.task import Task
from tests.conftest import Runner, own_model
from tests.data.class_pictures import write_classes
from tests.program import restored

# --- The program in this process -----------------------------------------------------------------


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Sequence[str]], str]:
    """Run the program with arguments that it refuses, and return its error message.

    The fixture replaces the start of processes, so that only the check of the arguments runs.
    """
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the program sets it too; undo it after the test
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(forkserver, "start", lambda: None)
    monkeypatch.setattr(forkserver, "stop", lambda: None)
    monkeypatch.setattr(running, "launch", lambda *_: pytest.fail("workers were started"))
    # Hydra would compose the configuration once more, only to find out whether this is a sweep.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    def refusal(arguments: Sequence[str]) -> str:
        before = files_here()
        monkeypatch.setattr(sys, "argv", ["ppll-run", *arguments])
        with restored(), pytest.raises(SystemExit) as left:
            app.main()
        said = capsys.readouterr()
        assert left.value.code == 2, said.err
        assert not said.out or "--multirun" in arguments
        assert files_here() == before, "something was left behind"
        (line,) = said.err.splitlines()
        assert line.startswith("ppll-run: ")
        return line.removeprefix("ppll-run: ")

    return refusal


def files_here() -> list[Path]:
    """Return what is in the working directory, without what Python compiles there."""
    return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)


# --- Code that a user may have written -----------------------------------------------------------


class NoModel:
    """A model that has no units."""


class Chain:
    """A model of two units: Flatten, and a unit that each subclass defines."""

    writes: tuple[str, ...] = ("x",)

    def second(self, pixels: int) -> nn.Module:
        """Build the module of the second unit."""
        return nn.Linear(pixels, 10)

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return the two units."""
        pixels = image.channels * image.height * image.width
        second = Unit("second", partial(self.second, pixels), writes=self.writes)
        return [Unit("flat", nn.Flatten, ("image",)), second]


class Wider(Chain):
    """A model whose second unit expects more features than the first one returns."""

    def second(self, pixels: int) -> nn.Module:
        """Build a layer for one pixel too many."""
        return nn.Linear(pixels + 1, 10)


class TwoNames(Chain):
    """A model whose second unit claims to return two tensors."""

    writes = ("x", "y")


class NoPrediction(Chain):
    """A model whose output is no prediction."""

    def second(self, pixels: int) -> nn.Module:
        """Return a feature map instead of logits."""
        return nn.Unflatten(1, (pixels, 1, 1))


class RaisesInConstructor:
    """A class that cannot be constructed."""

    def __init__(self) -> None:
        raise KeyError("where is it")


class RaisesInUnits:
    """A model whose method `units` raises an error of several lines."""

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Raise the error."""
        raise ValueError("not these images\nnor others")


class ReturnsNumber(LocalMethod):
    """A local method whose criterion is not a criterion."""

    def criterion(self, site: Site) -> Criterion:
        """Return a number."""
        return 3  # type: ignore[return-value]


class ReturnsModule(LocalMethod):
    """A local method whose criterion is a plain network."""

    def criterion(self, site: Site) -> Criterion:
        """Return a network without a loss."""
        return nn.Identity()  # type: ignore[return-value]


class MisfitHead(LocalMethod):
    """A local method whose head does not fit the features."""

    def criterion(self, site: Site) -> Criterion:
        """Return a head for features of width 3."""
        return Criterion(nn.Linear(3, 3), (site.feature,), site.task)


class NoSchedule:
    """A class with the constructor of a schedule, but no schedule."""

    def __init__(self, *, microbatches: int) -> None:
        self.microbatches = microbatches


class Idle(Schedule):
    """A schedule that yields no instruction."""

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield nothing."""
        return iter(())


class Stuck(GPipe):
    """A schedule that deadlocks.

    The first stage waits for gradients that the second stage computes after all forwards.
    """

    def batch(self, place: Place) -> Iterator[Compute]:
        """On the first stage, alternate forward and backward. Other stages are as in GPipe."""
        if place.stage:
            yield from super().batch(place)
            return
        for micro_batch in range(place.microbatches):
            yield Forward(0, micro_batch)
            yield Backward(0, micro_batch)
        yield Step(0)


class Endless(Idle):
    """A schedule whose batch never ends."""

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield the step again and again."""
        while True:
            yield Step(0)


class NoChunk(PPLL):
    """A schedule that names a chunk that the stage does not have."""

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield PPLL's instructions for another chunk."""
        for instruction in super().batch(place):
            yield replace(instruction, chunk=7)


class Sends(PPLL):
    """A schedule that yields a send, which only the passes may add."""

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield PPLL's instructions and a send."""
        yield from super().batch(place)
        yield SendActivations(1, 0, 0)  # type: ignore[misc]


class Words(Idle):
    """A schedule that yields something other than instructions."""

    def batch(self, place: Place) -> Iterator[Compute]:
        """Yield a string."""
        yield "forward"  # type: ignore[misc]


class NoTransport:
    """A class with the constructor of a transport, but no transport."""

    def __init__(self, *, depth: int, wire_dtype: str | None) -> None:
        self.depth, self.wire_dtype = depth, wire_dtype


class Unreadable(ImageDataset):
    """A data set that raises an exception that is not of this program."""

    class_count, channel_count = 10, 1

    def read(self, part: Part) -> Arrays:
        """Raise the exception."""
        raise RuntimeError("the disk is on fire")


class Labelless(ImageDataset):
    """A data set with too few labels."""

    class_count, channel_count = 10, 1

    def read(self, part: Part) -> Arrays:
        """Return three images and two labels."""
        return Arrays(np.zeros((3, 1, 8, 8), np.uint8), np.zeros(2, np.int64), "own.bin")


# --- Files and folders ---------------------------------------------------------------------------

Setup = Callable[[], None]


def file(name: str, content: str = "") -> Setup:
    """Return a function that writes a file, and creates its folder if needed."""

    def write() -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)

    return write


def folder(name: str) -> Setup:
    """Return a function that makes an empty folder."""
    return lambda: Path(name).mkdir()


def idx(array: np.ndarray[Any, Any], magic: int = 8) -> bytes:
    """Return a file in the format of Fashion-MNIST."""
    header = bytes([0, 0, magic, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


IMAGES, LABELS = np.zeros((6, 28, 28)), np.arange(6)
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FASHION = ["data=fashion_mnist", "data.root=root", "data.download=false", "batch_size=2"]
VOC = ["data=voc", "data.root=root", "data.download=false"]
COCO = ["data=coco", "data.root=root"]
SCENES = ["data=fashion_scenes", "data.root=root", "data.download=false"]
CIFAR = ["data=cifar10", "data.root=root", "data.download=false"]


OWN = ["data=imagefolder", "data.root=root"]


def own_pictures() -> None:
    """Write pictures of two classes. One picture cannot be read."""
    write_classes(Path("root"), {"train/a": [1], "train/b": [2], "test/a": [3], "test/b": []})
    Path("root/test/b/broken.jpg").write_bytes(b"no picture")


def fashion(changed: dict[str, bytes | None]) -> Setup:
    """Return a function that writes a small Fashion-MNIST to `root`, with some files changed."""
    good = {
        TRAIN_IMAGES: idx(IMAGES),
        TRAIN_LABELS: idx(LABELS),
        TEST_IMAGES: idx(IMAGES),
        TEST_LABELS: idx(LABELS),
    }

    def write() -> None:
        Path("root").mkdir()
        for name, content in (good | changed).items():
            if content is not None:
                (Path("root") / name).write_bytes(content)

    return write


def cifar() -> None:
    """Write files with the names of CIFAR-10's files, but with other contents."""
    batches = Path("root/cifar-10-batches-py")
    batches.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (batches / name).write_bytes(b"not what was published")


def record(**changed: object) -> Setup:
    """Return a function that writes a run directory `run` with changes in its `config.json`."""
    groups: dict[str, object] = {group: {} for group in GROUPS}
    config = {**groups, "choices": dict.fromkeys(GROUPS, "x"), **changed}
    return file("run/config.json", json.dumps(config))


def link(name: str, beside: Setup | None = None, target: str = "nothing") -> Setup:
    """Return a function that makes a link, by default to a missing file."""

    def make() -> None:
        if beside is not None:
            beside()
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(target)

    return make


# --- The table -----------------------------------------------------------------------------------

Row = tuple[str, list[str], str, str, Setup | None]

TINY = ["data=synthetic", "data.size=8", "data.train_samples=21", "data.test_samples=5"]
TINY += ["batch_size=4", "device=cpu"]
RESNET = ["model=resnet32", "data=synthetic"]
MANUAL = ["partition=manual", "gpus=3"]
GPIPE = ["schedule=gpipe"]


def row(
    name: str, arguments: list[str], start: str, possible: str, setup: Setup | None = None
) -> Row:
    """Make a row: name of the test, arguments, start of the error line, and words in its rest."""
    return name, arguments, start, possible, setup


OPTIONS = [
    row("model", ["model=vti"], "model=vti", "did you mean vit? there are edsr, resnet, "),
    row(
        "data",
        ["data=cifar"],
        "data=cifar",
        "did you mean cifar10? there are cifar10, cifar100, coco",
    ),
    row("partition", ["partition=even"], "partition=even", "there are flops, manual, params"),
    row("schedule", ["schedule=gpip"], "schedule=gpip", "did you mean gpipe? there are 1f1b, bp"),
    row("local", ["local=gredy"], "local=gredy", "did you mean greedy? there are auglocal"),
    row("fba", ["fba=false"], "fba=false", "there are off, on"),
    row("optim", ["optim=adam"], "optim=adam", "did you mean adamw? there are adamw, sgd"),
    row("optim-number", ["optim=3"], "optim=3", "there are adamw, sgd"),
    row(
        "transport",
        ["transport=rings"],
        "transport=rings",
        "did you mean ring? there are queue",
    ),
    row("old-name", ["transport=naive"], "transport=naive", "any more; use transport=queue"),
    row("tracker", ["tracker=wand"], "tracker=wand", "none"),
    row("experiment", ["experiment=no"], "experiment=no", "there are auglocal_resnet110_d1"),
    row("recipe", ["recipe=ppll"], "recipe=ppll", "there are auglocal_cifar10, edsr_div2k"),
    row("empty", ["model="], "model=", "there are edsr, resnet"),
    row("path", ["model=../x"], "model=../x", "there are edsr, resnet"),
    row("null", ["model=null"], "model=null", "there are edsr, resnet"),
]

KEYS = [
    row("top", ["gpu=2"], "gpu=2", "did you mean gpus?"),
    row("group", ["modle=vit"], "modle=vit", "did you mean model?"),
    row("of fba", ["fba.join=input"], "fba.join=input", "it is a key of fba=on"),
    row("of local", ["local.lag=2"], "local.lag=2", "it is a key of local=man, local=manpp"),
    row(
        "of another schedule",
        ["schedule=zb_h1", "schedule.chunks=2"],
        "schedule.chunks=2",
        "it is a key of schedule=interleaved",
    ),
    row("in-a-group", ["optim.lrr=1"], "optim.lrr=1", "did you mean optim.lr?"),
    row("without-its-group", ["lr=0.1"], "lr=0.1", "did you mean optim.lr?"),
    row("in-two-groups", ["depth=3"], "depth=3", "did you mean model.depth or transport.depth?"),
    row("nothing-near", ["optim.speed=1"], "optim.speed=1", "optim has name, lr, momentum"),
    row("in-a-preset", ["recipe.tau=1"], "recipe.tau=1", "--cfg job shows all keys"),
    row("no-such-group", ["foo.bar=1"], "foo.bar=1", "--cfg job shows all keys"),
    row("of-another-model", [*RESNET, "model.dim=8"], "model.dim=8", "model has _target_, depth"),
    row("added", ["+gpu=2"], "gpu=2", "did you mean gpus? there are model, data"),
    row("added-to-optim", ["+optim.lrr=2"], "optim.lrr=2", "did you mean lr? there are name, lr"),
    row("added-to-model", ["+model.dmi=2"], "model.dmi=2", "did you mean dim? it has dim, depth"),
    row("added-to-data", ["+data.x=2"], "data.x=2", "it has root, download, val_fraction"),
    row("added-to-transport", ["+transport.x=2"], "transport.x=2", "it has depth"),
    row("left-out", ["~optim.lr"], "optim.lr=", "has no value, and needs one"),
    row("left-out-of-model", ["~model.dim"], "model.dim=", "needs a value for it"),
    row("group-left-out", ["~model"], "model=", "has no value, and needs one"),
    row(
        "group-replaced", ["~model", "+model={_target_:own.M}"], "model=", "~model removes a group"
    ),
    row("null-left-out", ["~gpus"], "~gpus=", "there is nothing to leave out"),
    row("unknown-left-out", ["~gpu"], "gpu=", "did you mean gpus?"),
    row("missing", ["gpus=???"], "gpus=???", "Missing mandatory value"),
    row("interpolation", ["gpus=${no}"], "gpus=${no}", "Interpolation key 'no' not found"),
]

COMMAND_LINES = [
    row("dashes", ["--gpus=2"], "arguments=--gpus=2", "keys are given as KEY=VALUE"),
    row("no-value", ["gpus"], "arguments=gpus", "missing EQUAL"),
    row("two-equals", ["gpus=1=2"], "gpus=1=2: Hydra cannot read", "for the shell: 'gpus=\"1=2\"'"),
    row(
        "equals-in-a-path", ["hydra.run.dir=/a=b"], "hydra.run.dir=/a=b", "'hydra.run.dir=\"/a=b\"'"
    ),
    row("quote-in-a-path", ["data.root=it's"], "data.root=it's", "such characters twice"),
    row("open-bracket", ["gpus=[1"], "arguments=gpus=[1", "ppll-run --help"),
    row(
        "folder", ["--config-dir", "no"], "arguments=--config-dir no", "Additional config directory"
    ),
    row("sweep", ["gpus=1,2"], "gpus=1,2", "add --multirun"),
    row("lines", ["precision='a\nb'"], "precision=a\\nb", "'fp32', 'tf32' or 'bf16'"),
    row("multirun", ["--multirun", "gpus=0,-1"], "gpus=0", "greater than or equal to 1"),
    row("multirun-option", ["-m", "model=vit,vti"], "model=vti", "did you mean vit?"),
]

TYPES = [
    row("gpus", ["gpus=two"], "gpus=two", "valid integer"),
    row("gpus-fraction", ["gpus=1.5"], "gpus=1.5", "valid integer"),
    row("gpus-bool", ["gpus=true"], "gpus=true", "valid integer"),
    row("epochs", ["epochs=1e3"], "epochs=1000.0", "valid integer"),
    row("batch_size", ["batch_size=null"], "batch_size=null", "valid integer"),
    row("deterministic", ["deterministic=1"], "deterministic=1", "valid boolean"),
    row("compile", ["compile=maybe"], "compile=maybe", "valid boolean"),
    row("recompute", ["recompute=1"], "recompute=1", "valid boolean"),
    row("optim.lr", ["optim.lr=big"], "optim.lr=big", "valid number"),
    row("optim.betas", ["optim.betas=0.9"], "optim.betas=0.9", "valid list"),
    row("model.dim", ["model.dim=12.5"], "model.dim=12.5", "valid integer"),
    row("data.mean", ["data.mean=0.5"], "data.mean=0.5", "valid list"),
    row("data.flip", ["data.flip=often"], "data.flip=often", "valid boolean"),
    row("local.depth", ["local=fba", "local.depth=x"], "local.depth=x", "valid integer"),
    row("checkpoint", ["checkpoint=3"], "checkpoint=3", "valid dictionary"),
    row(
        "local.modules-unused",
        ["schedule=bp", "local.modules=two"],
        "local.modules=two",
        "whole number above 0",
    ),
]

VALUES = [
    row("gpus-0", ["gpus=0"], "gpus=0", "greater than or equal to 1"),
    row("gpus-negative", ["gpus=-1"], "gpus=-1", "greater than or equal to 1"),
    row("gpus-units", ["gpus=11"], "gpus=11", "only 10 units; use gpus=10 at most"),
    row("gpus-huge", [f"gpus={10**20}"], f"gpus={10**20}", "less than or equal to 4096"),
    row("gpus-modules", ["gpus=3", "local.modules=2"], "gpus=3", "use gpus=2 at most, or local.mo"),
    row("threads", ["threads=0"], "threads=0", "greater than or equal to 1"),
    row("threads-huge", [f"threads={10**9}"], f"threads={10**9}", "less than or equal to 4096"),
    row("device", ["device=gpu"], "device=gpu", "'auto', 'cuda' or 'cpu'"),
    row("device-cuda", ["device=cuda"], "device=cuda", "no CUDA device; use device=cpu"),
    row("precision", ["precision=fp16"], "precision=fp16", "'fp32', 'tf32' or 'bf16'"),
    row("seed", ["seed=-1"], "seed=-1", "greater than or equal to 0"),
    row("seed-huge", [f"seed={2**63}"], f"seed={2**63}", "less than 9223372036854775808"),
    row("epochs-0", ["epochs=0"], "epochs=0", "greater than or equal to 1"),
    row("max_steps", ["max_steps=0"], "max_steps=0", "greater than or equal to 1"),
    row("eval_every", ["eval_every=0"], "eval_every=0", "greater than or equal to 1"),
    row("checkpoint.every", ["checkpoint.every=0"], "checkpoint.every=0", "greater than or"),
    row("checkpoint.keep", ["checkpoint.keep=0"], "checkpoint.keep=0", "greater than or"),
    row("recompute", ["schedule=zb_h1", "recompute=true"], "recompute=true", "recompute=false, or"),
    row("progress_limit", ["progress_limit=0"], "progress_limit=0", "greater than 0"),
    row("batch_size-0", ["batch_size=0"], "batch_size=0", "greater than or equal to 1"),
    row("batch_size-set", ["batch_size=1438"], "batch_size=1438", "use at most 1437"),
    row(
        "batch_size-batch_norm",
        [*TINY, "local=dgl"],
        "batch_size=4",
        "use data.drop_last=true, another batch_size or fewer",
    ),
    row("log_every-0", ["log_every=0"], "log_every=0", "greater than or equal to 1"),
    row("log_every-half", ["log_every=0.5"], "log_every=0.5", "valid integer"),
    row("lr-negative", ["optim.lr=-1"], "optim.lr=-1", "greater than 0"),
    row("lr-0", ["optim.lr=0"], "optim.lr=0", "greater than 0"),
    row("lr-nan", ["optim.lr=nan"], "optim.lr=nan", "finite number"),
    row("lr-inf", ["optim.lr=inf"], "optim.lr=inf", "finite number"),
    row("momentum", ["optim.momentum=1"], "optim.momentum=1", "less than 1"),
    row("betas", ["optim.betas=[0.9]"], "optim.betas=[0.9]", "at least 2 items"),
    row("optim.schedule", ["optim.schedule=lin"], "optim.schedule=lin", "'constant', 'step', "),
    row("gamma", ["optim.gamma=10"], "optim.gamma=10", "less than or equal to 1"),
    row("warmup", ["optim.warmup_epochs=1e300"], "optim.warmup_epochs=1e+300", "less than or equa"),
    row("nonfinite", ["optim.nonfinite=go"], "optim.nonfinite=go", "'stop' or 'skip'"),
    row("nesterov", ["optim.nesterov=true"], "optim.nesterov=true", "needs optim.momentum above 0"),
    row("none", [*GPIPE, "schedule.microbatches=0"], "schedule.microbatches=0", "above 0"),
    row(
        "microbatches-batch",
        [*GPIPE, "schedule.microbatches=65"],
        "schedule.microbatches=65",
        "use at most 64, or a larger batch_size",
    ),
    row("transport.depth", ["transport.depth=0"], "transport.depth=0", "whole number above 0"),
]

CUTS = [
    row("modules-0", ["local.modules=0"], "local.modules=0", "whole number above 0"),
    row("modules-units", ["local.modules=11"], "local.modules=11", "from 1 to 10"),
    row(
        "local-order",
        ["local.cuts=[blocks.3,blocks.1]"],
        "local.cuts=[blocks.3,blocks.1]",
        "in the model's order, each once; reorder them",
    ),
    row(
        "local-duplicate",
        ["local.cuts=[blocks.1,blocks.1]"],
        "local.cuts=[blocks.1,blocks.1]",
        "each once",
    ),
    row("local-unknown", ["local.cuts=[blok.1]"], "local.cuts=[blok.1]", "use blocks.0, blocks.1"),
    row("local-first", ["local.cuts=[embed]"], "local.cuts=[embed]", "use blocks.0, blocks.1"),
    row("local-number", ["local.cuts=8"], "local.cuts=8", "list of names of units, or the name"),
    row("local-name", ["local.cuts=K8"], "local.cuts=K8", "give a list of names of units"),
    row("resnet-name", [*RESNET, "local.cuts=K9"], "local.cuts=K9", "the names are K2, K4, K8"),
    row(
        "both",
        ["local.cuts=[head]", "local.modules=3"],
        "local.modules=3",
        "local.cuts makes 2 modules; give only one of the two",
    ),
    row("manual-none", MANUAL, "partition.cuts=null", "each stage except the first"),
    row("not-manual", ["partition.cuts=[head]"], "partition.cuts=['head']", "partition=manual"),
    row(
        "manual-few",
        [*MANUAL, "partition.cuts=[head]"],
        "partition.cuts=[head]",
        "give 2 cuts, or gpus=2",
    ),
    row(
        "manual-order",
        [*MANUAL, "partition.cuts=[head,blocks.1]"],
        "partition.cuts=[head,blocks.1]",
        "reorder them",
    ),
    row(
        "manual-unknown",
        [*MANUAL, "partition.cuts=[blocks.1,haed]"],
        "partition.cuts=[blocks.1,haed]",
        "use blocks.0, blocks.1",
    ),
    row(
        "manual-inside",
        [*MANUAL, "partition.cuts=[blocks.1,blocks.2]", "local.cuts=[blocks.2,head]"],
        "partition.cuts=[blocks.1,blocks.2]",
        "'blocks.1' is inside a module; cut at blocks.2, head",
    ),
]

MODELS = [
    row("heads", ["model.heads=3"], "model.heads=3", "possible: 1, 2, 4, 8"),
    row("heads-0", ["model.heads=0"], "model.heads=0", "must be at least 1"),
    row("patch", ["model.patch=3"], "model.patch=3", "possible: 1, 2, 4, 8"),
    row("patch-large", ["model.patch=16"], "model.patch=16", "possible: 1, 2, 4, 8"),
    row("dim", ["model.dim=-4"], "model.dim=-4", "must be at least 1"),
    row("dropout", ["model.dropout=1.0"], "model.dropout=1.0", "give 0 <= p < 1"),
    row("drop_path", ["model.drop_path=1"], "model.drop_path=1", "give 0 <= p < 1"),
    row("drop_path-negative", [*RESNET, "model.drop_path=-0.1"], "model.drop_path=-0.1", "p < 1"),
    row("drop_path-text", ["model.drop_path=often"], "model.drop_path=often", "valid number"),
    row("drop_path-null", ["model.drop_path=null"], "model.drop_path=null", "valid number"),
    row("drop_path-bool", ["model.drop_path=true"], "model.drop_path=true", "valid number"),
    row("pooling", ["model.pooling=max"], "model.pooling=max", "'cls' or 'mean'"),
    row("mlp_ratio", ["model.mlp_ratio=nan"], "model.mlp_ratio=nan", "give a positive number"),
    row("resnet-depth", [*RESNET, "model.depth=33"], "model.depth=33", "nearest: 32, 38"),
    row(
        "family-depth",
        ["model=resnet18", "model.depth=19", "data=synthetic"],
        "model.depth=19",
        "possible: 18, 34, 50, 101, 152",
    ),
    row("stem", ["model=resnet18", "model.stem=big"], "model.stem=big", "'cifar' or 'imagenet'"),
    row(
        "image",
        ["model=resnet18", "model.stem=imagenet"],
        "model.stem=imagenet",
        "at least 32 x 32 pixels, but these have 8 x 8",
    ),
    row("memory", [f"model.dim={10**9}"], f"model.dim={10**9}", "is larger than any memory"),
]

METHODS = [
    row("vit_blocks", [*RESNET, "local=vit_blocks"], "local=vit_blocks", "use a ViT model, or"),
    row("blocks", ["local=vit_blocks", "local.depth=2-"], "local.depth=2-", "for example 2-0"),
    row(
        "blocks-list",
        ["local=vit_blocks", "local.depth=[1,2]"],
        "local.depth=[1, 2]",
        "give one number for each module but the last",
    ),
    row("dgl", ["local=dgl", "local.hidden=0"], "local.hidden=0", "must be at least 1"),
    row("predsim", ["local=predsim", "local.similarity=2"], "local.similarity=2.0", "give 0 <= "),
    row("infopro", ["local=infopro", "local.loss=hinge"], "local.loss=hinge", "'softmax' or 'con"),
    row(
        "infopro-weights",
        ["local=infopro", "local.weights=[1,2]"],
        "local.weights=[1.0, 2.0]",
        "give l1 and l2 of the first",
    ),
    row("auglocal", ["local=auglocal", "local.tau=2"], "local.tau=2.0", "give 0 <= tau <= 1"),
    row("man", ["local=man", "local.lag=0"], "local.lag=0", "give 1 or more"),
    row("manpp", ["local=manpp", "local.loss=mse"], "local.loss=mse", "'infopro', 'dgl' or 'ce'"),
    row("fba", ["local=fba", "local.depth=0"], "local.depth=0", "at least 1"),
    row(
        "detection-head",
        ["local.detection_head=level"],
        "local.detection_head=level",
        "is for detection; choose a data set with boxes",
    ),
    row(
        "detection-head-name",
        ["local.detection_head=levels"],
        "local.detection_head=levels",
        "'pyramid' or 'level'",
    ),
    row("vit-depth", ["model.depth=4097"], "model.depth=4097", "use at most 4096"),
    row("resnet-long", [*RESNET, "model.depth=4100"], "model.depth=4100", "use at most 4096"),
    row(
        "infopro-long",
        [*RESNET, "local=infopro", "local.convolutions=10000000000"],
        "local.convolutions=10000000000",
        "use at most 4096",
    ),
    row("fba-on", ["fba=on", "local=dgl"], "fba=on", "reads no feature bank; use local=fba"),
    row("fba-off", ["local=fba", "+fba.features=3"], "fba.features=3", "applies only with fba=on"),
    row(
        "fba-features",
        ["fba=on", "fba.features=all"],
        "fba.features=all",
        "'stage_ends' or 'first'",
    ),
    row(
        "fba-first",
        ["fba=on", "fba.features=first"],
        "fba.features=first",
        "is the long skip of super-resolution, but this is another task; use fba.features=every",
    ),
    row("fba-fusion", ["fba=on", "fba.fusion=mean"], "fba.fusion=mean", "'concatenate', 'add' or"),
    row(
        "fba-join",
        ["fba=on", "fba.join=input", "fba.trains=probe"],
        "fba.trains=probe",
        "applies only with fba.join=head",
    ),
]

DATA = [
    row("root", ["data.root=/no/where"], "data.root=/no/where", "create it, or give null"),
    row("root-empty", ["data.root="], "data.root=", "create it, or give null"),
    row("root-file", ["data.root=here"], "data.root=here", "is not a folder that", file("here")),
    row(
        "no-files",
        FASHION,
        "data.root=root",
        "allow data.download=true, fetch http",
        folder("root"),
    ),
    row(
        "a-file-is-missing",
        FASHION,
        "data.root=root",
        "fetch http",
        fashion({TEST_LABELS: None}),
    ),
    row(
        "short",
        FASHION,
        "data.root=root",
        "has 4703 bytes of data, not 4704 for [6, 28, 28]",
        fashion({TRAIN_IMAGES: idx(IMAGES)[:-1]}),
    ),
    row(
        "within-the-header",
        FASHION,
        "data.root=root",
        "ends after 6 bytes, within its header",
        fashion({TRAIN_IMAGES: idx(IMAGES)[:6]}),
    ),
    row("empty", FASHION, "data.root=root", "not 00000801", fashion({TRAIN_LABELS: b""})),
    row(
        "magic",
        FASHION,
        "data.root=root",
        "begins with 00000d03, not 00000803",
        fashion({TEST_IMAGES: idx(IMAGES, magic=13)}),
    ),
    row(
        "labels",
        FASHION,
        "data.root=root",
        "holds labels 5 to 10, not 0 to 9",
        fashion({TRAIN_LABELS: idx(LABELS + 5)}),
    ),
    row(
        "lengths",
        FASHION,
        "data.root=root",
        "holds 6 images and 5 labels",
        fashion({TEST_LABELS: idx(LABELS[:5])}),
    ),
    row(
        "sizes",
        FASHION,
        "data.root=root",
        "its images are (1, 28, 14), but the training images (1, 28, 28)",
        fashion({TEST_IMAGES: idx(IMAGES[:, :, :14])}),
    ),
    row(
        "gz",
        FASHION,
        "data.root=root",
        f"{TRAIN_IMAGES}.gz: cannot be read",
        fashion({TRAIN_IMAGES: None, f"{TRAIN_IMAGES}.gz": gzip.compress(idx(IMAGES))[:-9]}),
    ),
    row(
        "voc", VOC, "data.root=root", "VOC/ by hand, so that root/VOCdevkit/VOC2007", folder("root")
    ),
    row("voc-years", ["data=voc", "data.years=8"], "data.years=8", "choose 07, 07+12, 12"),
    row("coco", COCO, "data.root=root", "2017's pictures and annotations of http", folder("root")),
    row("scenes", SCENES, "data.root=root", "allow data.download=true", folder("root")),
    row("scenes-side", ["data=fashion_scenes", "data.side=9"], "data.side=9", "give at least 32"),
    row("cifar", CIFAR, "data.root=root", "is not the published file (its MD5 sum", cifar),
    row("cifar-missing", CIFAR, "data.root=root", "allow data.download=true", folder("root")),
    row("own-root", OWN[:1], "data.root=null", "data.root=FOLDER, with the folders train and test"),
    row("own-empty", OWN, "data.root=root", "put train/CLASS/PICTURE", folder("root")),
    row("own-broken", OWN, "data=root/test/b/broken.jpg", "remove or repair it", own_pictures),
    row("augment", ["data.augment=all"], "data.augment=all", "'basic', 'randaugment' or 'none'"),
    row(
        "mixup",
        ["data.mixup=-1"],
        "data.mixup=-1.0",
        "finite and not negative; give 0 to turn it off",
    ),
    row("mixup-nan", ["data.mixup=nan"], "data.mixup=nan", "finite and not negative"),
    row("cutmix", ["data.cutmix=inf"], "data.cutmix=inf", "finite and not negative"),
    row("cutmix-text", ["data.cutmix=much"], "data.cutmix=much", "must be a valid number"),
    row("mixed-boxes", [*SCENES, "+data.mixup=1"], "data.mixup=1", "has no such option"),
    row("smoothing", ["optim.label_smoothing=1"], "optim.label_smoothing=1", "less than 1"),
    row("ema", ["optim.ema=1"], "optim.ema=1", "less than 1"),
    row("no-ema", ["optim.ema=0"], "optim.ema=0", "greater than 0"),
    row("val_fraction", ["data.val_fraction=1.0"], "data.val_fraction=1.0", "0 <= fraction < 1"),
    row("val_few", ["data.val_fraction=1e-5"], "data.val_fraction=1e-05", "or 0 for no `val`"),
    row("eval_limit", ["data.eval_limit=0"], "data.eval_limit=0", "at least 1 or null for all"),
    row("std", ["data.std=[0.0]"], "data.std=[0.0]", "give values above 0"),
    row("mean", ["data.mean=[0.1,0.2]"], "data.mean=[0.1, 0.2]", "give one value, or one per"),
    row("pad", ["data.pad=8"], "data.pad=8", "must be less than the images' 8 pixels"),
    row("classes", [*TINY, "data.classes=1"], "data.classes=1", "give at least 2"),
    row("samples", [*TINY, "data.train_samples=0"], "data.train_samples=0", "give at least 1"),
]

RESUMES = [
    row("missing", ["resume=run"], "resume=run", "give a run directory"),
    row("a-file", ["resume=run"], "resume=run", "give a run directory", file("run")),
    row("no-run", ["resume=run"], "resume=run", "that a run printed at its end", folder("run")),
    row("broken", ["resume=run"], "resume=run", "holds no config.json", file("run/config.json")),
    row("start-up", ["resume=run"], "resume=run", "start it again with", file("run/ppll-run.log")),
    row(
        "link",
        ["resume=run"],
        "resume=",
        "ppll-run.log is a symbolic link",
        link("run/ppll-run.log", record(), "config.json"),
    ),
    row(
        "metrics",
        ["resume=run"],
        "resume=",
        "remove the link",
        link("run/metrics.jsonl", record(), "config.json"),
    ),
    row(
        "nowhere",
        ["resume=run"],
        "resume=run",
        "its ppll-run.log is not a file",
        link("run/ppll-run.log", record()),
    ),
    row(
        "a-list",
        ["resume=run"],
        "resume=run",
        "holds no config.json of a run",
        file("run/config.json", "[]"),
    ),
    row(
        "newer",
        ["resume=run"],
        "resume=run",
        f"has format {CONFIG_FORMAT + 1}, and this program knows {CONFIG_FORMAT}; use a newer",
        record(format=CONFIG_FORMAT + 1),
    ),
    row(
        "sweep",
        ["resume=run", "--multirun"],
        "resume=",
        "is the folder of a single run; remove --multirun",
        record(),
    ),
    row(
        "elsewhere",
        ["resume=run", "hydra.run.dir=other"],
        "hydra.run.dir=other",
        "leave it out",
        record(),
    ),
]

FOLDERS = [
    row("not-empty", ["hydra.run.dir=a"], "hydra.run.dir=a", "choose a new folder", file("a/b")),
    row(
        "not-empty-interpolated",
        ["hydra.run.dir=a${seed}"],
        "hydra.run.dir=a0",
        "choose a new folder",
        file("a0/b"),
    ),
    row("forced", ["++hydra.run.dir='a'"], "hydra.run.dir=a", "choose a new folder", file("a/b")),
    row("in-a-file", ["hydra.run.dir=a/b"], "hydra.run.dir=a/b", "can write to", file("a")),
    row("in-proc", ["hydra.run.dir=/proc/a/b"], "hydra.run.dir=/proc/a/b", "can write to"),
    row("outputs", [], "hydra.run.dir=outputs", "give hydra.run.dir=FOLDER", file("outputs")),
    row("null", ["hydra.run.dir=null"], "hydra.run.dir=null", "not the name of a folder"),
    row("refused-in-it", ["hydra.run.dir=a", "gpus=0"], "gpus=0", "greater than", folder("a")),
    row("refused-below", ["hydra.run.dir=a/b/c", "gpus=0"], "gpus=0", "greater", folder("a")),
    row("chdir", ["hydra.job.chdir=true", "gpus=11"], "gpus=11", "use gpus=10 at most"),
    row("link", ["hydra.run.dir=a"], "hydra.run.dir=a", "not empty", link("a/ppll-run.log")),
    row("refused-later", ["hydra.run.dir=${now:%Y}/x", "gpus=11"], "gpus=11", "use gpus=10"),
]


def blamed(group: str, target: type | str, possible: str, *others: str) -> Row:
    """Make a row in which a configuration group names a class that cannot be used."""
    path = target if isinstance(target, str) else f"{__name__}.{target.__name__}"
    if group == "model":
        others = (*own_model("")[1:], *others)
    arguments = [f"{group}._target_={path}", *others]
    return row(f"{group}-{path.rpartition('.')[2]}", arguments, arguments[0], possible)


TARGETS = [
    blamed("model", "no_such.Module", "cannot be imported (No module named 'no_such')"),
    blamed("model", "ppll_cli.models.vit.Vit", "did you mean ViT?"),
    blamed("model", "ViT", "is not the dotted path of a class"),
    blamed("model", "ppll_cli.__version__", "is not a class"),
    blamed("model", NoModel, "it has no 'units'; see ppll_cli.models.unit.Model"),
    blamed("model", Wider, "running a sample through 'second' raised RuntimeError: "),
    blamed("model", TwoNames, "'second' writes x, y, but returned 1 value(s)"),
    blamed(
        "model", RaisesInConstructor, "constructing it raised KeyError: 'where is it'; see line "
    ),
    blamed("model", RaisesInUnits, "units() raised ValueError: not these images; see line "),
    blamed("model", "tests.own_models.NotUnits", "must return a list of at least one Unit"),
    blamed("model", "tests.own_models.ReadsLabel", "reads 'label', which no earlier unit writes"),
    blamed("local", "fractions.Fraction", "derive it from ppll_cli.local.method.LocalMethod"),
    blamed("local", "ppll_cli.local.method.LocalMethod", "abstract method criterion"),
    blamed("local", ReturnsNumber, "the auxiliary network of module 0 raised AttributeError"),
    blamed("local", ReturnsModule, "its criterion() must return a Criterion"),
    blamed("local", MisfitHead, "the auxiliary network of module 0 raised RuntimeError"),
    blamed("schedule", NoSchedule, "derive it from ppll_cli.pipeline.schedule.Schedule"),
    blamed("schedule", Idle, "stage 0 never runs Step(chunk=0)"),
    blamed("schedule", Stuck, "every stage waits for another one", "schedule.microbatches=8"),
    blamed("schedule", Endless, "stage 0 has more than 400 instructions for a batch"),
    blamed(
        "schedule",
        NoChunk,
        "Forward(chunk=7, micro_batch=0) on stage 0: the chunks of this stage are 0",
    ),
    blamed("schedule", Sends, "stage 0 runs SendActivations(peer=1, chunk=0, micro_batch=0), but"),
    blamed("schedule", Words, "stage 0 runs forward, but batch() yields only"),
    blamed("transport", NoTransport, "has no 'obstacle'; see ppll_cli.transport.channel.Transport"),
    blamed(
        "data", Unreadable, "loading the data raised RuntimeError: the disk is on fire; see lin"
    ),
    row(
        "data-Labelless",
        [f"data._target_={__name__}.Labelless"],
        "data.root=null",
        "own.bin: holds 3 images and 2 labels",
    ),
    row(
        "model-NoPrediction",
        [f"model._target_={__name__}.NoPrediction", *own_model("")[1:]],
        "model=second",
        "the loss of its output for features (64, 1, 1) raised",
    ),
    row(
        "model-broken",
        ["model._target_=broken.Model"],
        "model._target_=broken.Model",
        "cannot be imported (SyntaxError: ",
        file("broken.py", "def f(:"),
    ),
    row(
        "model-leaves",
        ["model._target_=leaves.Model"],
        "model._target_=leaves.Model",
        "cannot be imported (SystemExit: 3)",
        file("leaves.py", "import sys\nsys.exit(3)"),
    ),
]

TABLE = {
    "option": OPTIONS,
    "key": KEYS,
    "command line": COMMAND_LINES,
    "type": TYPES,
    "value": VALUES,
    "cut": CUTS,
    "model": MODELS,
    "local": METHODS,
    "data": DATA,
    "resume": RESUMES,
    "folder": FOLDERS,
    "target": TARGETS,
}


@pytest.mark.parametrize(
    ("arguments", "start", "possible", "setup"),
    [
        pytest.param(*rest, id=f"{table} {name}")
        for table, rows in TABLE.items()
        for name, *rest in rows
    ],
)
def test_a_wrong_value_is_refused_in_one_line(
    refusal: Callable[[Sequence[str]], str],
    arguments: list[str],
    start: str,
    possible: str,
    setup: Setup | None,
) -> None:
    if setup:
        setup()
    line = refusal(arguments)
    assert line.startswith(start)
    assert ": " in line
    assert possible in line.removeprefix(start)


def test_the_table_has_at_least_60_cases() -> None:
    assert sum(map(len, TABLE.values())) >= 60


@pytest.mark.parametrize(
    ("found", "arguments", "line"),
    [
        (
            1,
            ["device=cuda"],
            "gpus=2: there are 1 CUDA devices; use gpus=1, device=cpu, or oversub",
        ),
        (2, ["gpus=3"], "gpus=3: there are 2 CUDA devices; use gpus=2, device=cpu, or oversubscri"),
    ],
)
def test_too_few_cuda_devices_are_refused(
    refusal: Callable[[Sequence[str]], str],
    monkeypatch: pytest.MonkeyPatch,
    found: int,
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert refusal(arguments).startswith(line)


# --- Combinations of right values ----------------------------------------------------------------

SAMPLES, HELD_OUT = 21, 6
UNITS = {
    "vit": ["embed", "blocks.0", "blocks.1", "blocks.2", "head"],
    "resnet": ["stem", "layer1.0", "layer2.0", "layer3.0", "head"],
}
VIT = ["model=vit", "model.dim=16", "model.depth=3", "model.heads=2"]
MODEL = {"vit": VIT, "resnet": ["model=resnet32", "model.depth=8"]}
LIMIT_S = 60.0


def key(name: str, *values: object) -> st.SearchStrategy[list[str]]:
    """Draw an override that gives this key one of the values, or no override."""
    return st.sampled_from([[], *([f"{name}={value}"] for value in values)])


@st.composite
def combinations(draw: st.DrawFn) -> list[str]:
    """Draw overrides of a small run. Each value is valid alone; their combination may not be."""
    model = draw(st.sampled_from(sorted(MODEL)))
    overrides = [*TINY, *MODEL[model], "threads=1", "max_steps=2", f"progress_limit={LIMIT_S}"]
    if model == "vit":
        overrides += draw(key("model.pooling", "mean")) + draw(key("model.dropout", 0.1))
    overrides += draw(key("schedule", "bp", "ll", "pp", "gpipe", "1f1b", "ppll"))
    overrides += draw(key("schedule.microbatches", 1, 2, 3, 5))
    overrides += draw(key("gpus", 1, 2, 3, 4, 5))
    methods = [
        "greedy",
        "dgl",
        "predsim",
        "infopro",
        "auglocal",
        "vit_blocks",
        "fba",
        "man",
        "manpp",
    ]
    overrides += draw(key("local", *methods) | st.just(["fba=on"]))
    cuts = draw(st.lists(st.sampled_from(UNITS[model][1:]), max_size=3, unique=True))
    if draw(st.integers(0, 3)):
        cuts.sort(key=UNITS[model].index)
    written = f"[{','.join(cuts)}]"
    overrides += draw(key("local.modules", 1, 2, 3, 4, 5) | key("local.cuts", written))
    partition = draw(key("partition", "uniform", "params", "flops", "profile", "manual"))
    overrides += partition
    if partition == ["partition=manual"]:
        overrides += [f"partition.cuts={written}"]
    overrides += draw(key("transport", "ring", "queue")) + draw(key("transport.depth", 1, 3))
    overrides += draw(key("batch_size", 1, 2, 7, 21, 22)) + draw(key("data.drop_last", "true"))
    overrides += draw(key("data.val_fraction", 0.3)) + draw(key("data.eval_limit", 1))
    overrides += draw(key("data.pad", 1)) + draw(key("data.flip", "true"))
    overrides += draw(key("optim", "sgd", "adamw")) + draw(key("optim.clip_norm", 0.5))
    overrides += draw(key("optim.schedule", "constant", "step"))
    overrides += draw(key("optim.nonfinite", "skip")) + draw(key("precision", "fp32", "bf16"))
    overrides += draw(key("epochs", 1, 2)) + draw(key("eval_every", 1))
    overrides += draw(key("checkpoint.every", 1)) + draw(key("checkpoint.best", "true"))
    return overrides + draw(key("checkpoint.keep", 1)) + draw(key("seed", 1, 2**63 - 1))


@examples(
    max_examples=6,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(overrides=combinations())
def test_any_combination_of_values_trains_or_is_refused(
    overrides: list[str], run: Runner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    started_s = time.monotonic()
    found: dict[str, Any] | ConfigError
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))
        try:
            found = run(*overrides).summary
        except ConfigError as error:
            found = error
    assert time.monotonic() - started_s < LIMIT_S
    assert not multiprocessing.active_children()
    if isinstance(found, ConfigError):
        groups = {override.partition("=")[0].partition(".")[0] for override in overrides}
        assert "\n" not in str(found)
        assert found.key.partition(".")[0] in {*groups, "gpus"}  # by default `gpus` may be 2
        return
    asked = dict(override.split("=", 1) for override in overrides)
    samples = SAMPLES - (HELD_OUT if "data.val_fraction" in asked else 0)
    batch_size = int(asked["batch_size"])
    per_epoch = samples // batch_size if "data.drop_last" in asked else -(-samples // batch_size)
    steps = min(2, int(asked.get("epochs", 15)) * per_epoch)
    assert (found["status"], found["steps"]) == ("completed", steps)
    assert found["test"]["loss"] is not None
