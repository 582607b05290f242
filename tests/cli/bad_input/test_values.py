"""Every wrong key or value is refused in one line.

`tests/config/test_settings.py` has more values that the configuration alone shows to be wrong. A
line of a table is ARGUMENTS | WORDS, or ARGUMENTS | START | WORDS: the message begins with the last
argument or with START, and has WORDS in its rest.
"""

import pytest

from tests.cli.bad_input.conftest import Refusal, Refused, rows
from tests.conftest import pretend_devices

OPTIONS = """
model=vti | did you mean vit? there are edsr, resnet,
fba=false | there are off, on
optim=3 | there are adamw, sgd
transport=naive | any more; use transport=queue
tracker=wand | none
model=../x | there are edsr, resnet
"""

KEYS = """
gpu=2 | did you mean gpus?
fba.join=input | it is a key of fba=on
schedule=zb_h1 schedule.chunks=2 | it is a key of schedule=interleaved
optim.lrr=1 | did you mean optim.lr?
optim.speed=1 | optim has name, lr, momentum
recipe.tau=1 | --cfg job shows all keys
foo.bar=1 | --cfg job shows all keys
model=resnet32 data=synthetic model.dim=8 | model has _target_, depth
+gpu=2 | did you mean gpus? there are model, data
+model.dmi=2 | did you mean dim? it has dim, depth
~optim.lr | optim.lr= | has no value, and needs one
~model +model={_target_:own.M} | model= | ~model removes a group
~gpus | ~gpus= | there is nothing to delete
gpus=??? | Missing mandatory value
gpus=${no} | Interpolation key 'no' not found
"""

COMMAND_LINES = """
--gpus=2 | arguments=--gpus=2 | keys are given as KEY=VALUE
gpus | arguments=gpus | missing EQUAL
gpus=1=2 | gpus=1=2: Hydra cannot parse this override | for the shell: 'gpus="1=2"'
hydra.run.dir=/a=b | 'hydra.run.dir="/a=b"'
data.root=it's | such characters twice
gpus=[1 | arguments=gpus=[1 | ppll-run --help
--config-dir no | arguments=--config-dir no | Additional config directory
gpus=1,2 | add --multirun
--multirun --cfg job | arguments=--multirun --cfg job | Only one of
--multirun gpus=0,-1 | gpus=0 | greater than or equal to 1
-m model=vit,vti | model=vti | did you mean vit?
"""

TYPES = """
gpus=1.5 | valid integer
deterministic=1 | valid boolean
data.mean=0.5 | valid list
checkpoint=3 | valid dictionary
"""

VALUES = """
gpus=11 | only 10 units; use gpus=10 at most
gpus=3 local.modules=2 | gpus=3 | use gpus=2 at most, or local.modules
device=cuda | no CUDA device; use device=cpu
schedule=zb_h1 recompute=true | recompute=false, or
batch_size=1438 | use at most 1437
optim.lr=-1 | greater than 0
optim.nonfinite=go | 'stop' or 'skip'
schedule=gpipe batch_size=4 schedule.microbatches=5 | use at most 4, or a larger batch_size
"""

CUTS = """
local.modules=11 | from 1 to 10
local.cuts=[blocks.3,blocks.1] | in the model's order, each once; reorder them
local.cuts=[blok.1] | use blocks.0, blocks.1
local.cuts=8 | list of names of units, or the name
local.cuts=K8 | give a list of names of units
model=resnet32 data=synthetic local.cuts=K9 | the names are K2, K4, K8
local.cuts=[head] local.modules=3 | local.cuts makes 2 modules; give only one of the two
partition=manual gpus=3 partition.cuts=[head] | give 2 cuts, or gpus=2
gpus=2 local.cuts=[blocks.2,head] partition=manual partition.cuts=[blocks.1] | cut at blocks.2, head
"""

MODELS = """
model.heads=3 | possible: 1, 2, 4, 8
model.mlp_ratio=nan | use 4, for example
model=resnet32 data=synthetic model.depth=33 | nearest: 32, 38
model=resnet18 model.stem=imagenet | at least 32 x 32 pixels, but these have 8 x 8
model.dim=1000000000 | less than or equal to 16777216
"""

METHODS = """
local=vit_blocks local.depth=2- | for example 2-0
fba=on local=dgl | fba=on | reads no feature bank; use local=fba
"""

DATA = """
data.root=/no/where | give an existing folder that you can read, or null
data=imagefolder | data.root=null | data.root=FOLDER, with the folders train and test
data.augment=all | 'basic', 'randaugment' or 'none'
data=fashion_scenes data.root=root data.download=false +data.mixup=1 | has no such option
data.val_fraction=1e-5 | data.val_fraction=1e-05 | or 0 for no `val`
data.mean=[0.1,0.2] | data.mean=[0.1, 0.2] | give one value, or one per
data.pad=8 | must be less than 8, the images' side in pixels
"""

TRACKERS = """
+tracker.name=x | ppll_cli.observe.tracker.NoTracker has no such
tracker._target_=fractions.Fraction | cannot be used here: it has no 'start'; see ppll
tracker=wandb tracker.project='' | tracker.project='' | must be a name without
tracker=wandb tracker.upload.timeline=1 | tracker.upload={'timeline': 1 | must be
"""

FURTHER = """
tracker=wandb +tracker.upload.x=true | tracker.upload={'timeline': False | extra inputs are not
partition=manual gpus=3 partition.cuts=[blocks.1,haed] | use blocks.0, blocks.1
partition=manual gpus=3 partition.cuts=[head,blocks.1] | reorder them
model=resnet32 data=synthetic model.depth=20 local.cuts=K8 | this model has none; or give a list
model=resnet32 data=synthetic local.cuts=K2 gpus=3 | at most, or name more units in local.cuts
model=resnet32 data=synthetic local.cuts=K8 local.modules=4 | local.cuts makes 8 modules
~model | model= | has no value, and needs one
tracker=wandb tracker.project=a/b | must be a name without
model=resnet18 model.depth=19 data=synthetic | model.depth=19 | must be 18, 34, 50, 101 or 152
model.patch=16 | possible: 1, 2, 4, 8
local=vit_blocks local.depth=[1,2] | local.depth=[1, 2] | give one number for each module but
local=infopro local.weights=[1,2] | local.weights=[1, 2] | must be l1 and l2 of the first
local=fba local.depth=x | valid integer
local.cuts=[blocks.1,blocks.1] | each once
local.cuts=[] gpus=2 | there is only 1 module; use gpus=1 at most, or name more units in local
data=synthetic data.train_samples=9 batch_size=4 local=dgl | batch_size=4 | use data.drop_last=true,
local.detection_head=level | is for detection; choose a data set with boxes
model=resnet32 data=synthetic local=vit_blocks | use a ViT model, or
optim.label_smoothing=1 | less than 1
schedule=interleaved schedule.chunks=0 | must be greater than or equal to 1
data.root= | give an existing folder that you can read, or null
data=fashion_scenes data.side=9 | greater than or equal to 32
model=resnet32 data=synthetic model.drop_path=-0.1 | greater than or equal to 0
data=cifar | did you mean cifar10? there are cifar10, cifar100, coco
partition=even | there are flops, manual, params
schedule=gpip | did you mean gpipe? there are 1f1b, bp
local=gredy | did you mean greedy? there are auglocal
optim=adam | did you mean adamw? there are adamw, sgd
transport=rings | did you mean ring? there are queue
experiment=no | there are auglocal_resnet110_d1
recipe=ppll | there are auglocal_cifar10, edsr_div2k
model= | there are edsr, resnet
model=null | there are edsr, resnet
modle=vit | did you mean model?
local.lag=2 | it is a key of local=man, local=manpp
lr=0.1 | did you mean optim.lr?
depth=3 | did you mean model.depth or transport.depth?
+optim.lrr=2 | did you mean lr? there are name, lr
+data.x=2 | it has root, download, val_fraction
+transport.x=2 | it has depth
~model.dim | model.dim= | needs a value for it
~gpu | gpu= | did you mean gpus?
gpus=two | valid integer
epochs=1e3 | epochs=1000.0 | valid integer
batch_size=null | valid integer
compile=maybe | valid boolean
recompute=1 | valid boolean
model.dim=12.5 | valid integer
data.flip=often | valid boolean
schedule=bp local.modules=two | valid integer, or null
local.modules=2.5 | valid integer, or null
gpus=0 | greater than or equal to 1
gpus=100000000000000000000 | less than or equal to 4096
threads=1000000000 | less than or equal to 4096
seed=9223372036854775808 | less than 9223372036854775808
progress_limit=0 | greater than 0
optim.lr=nan | finite number
optim.gamma=10 | less than or equal to 1
optim.warmup_epochs=1e300 | optim.warmup_epochs=1e+300 | less than or equal
local.modules=0 | greater than or equal to 1, or null
local.cuts=[embed] | use blocks.0, blocks.1
model=resnet32 data=synthetic local.cuts=k8 | the names are K2, K4, K8
model.heads=0 | must be greater than or equal to 1
model.patch=3 | possible: 1, 2, 4, 8
model.dim=-4 | must be greater than or equal to 1
model.dropout=1.0 | less than 1
model.drop_path=1 | less than 1
model.drop_path=often | valid number
model.drop_path=null | valid number
model.drop_path=true | valid number
model.pooling=max | 'cls' or 'mean'
model=resnet18 model.stem=big | 'cifar' or 'imagenet'
local=dgl local.hidden=0 | must be greater than or equal to 1, or null
local=predsim local.similarity=2 | less than or equal to 1
local=infopro local.loss=hinge | 'softmax' or 'contrastive'
local=auglocal local.tau=2 | local.tau=2 | less than or equal to 1
local=man local.lag=0 | greater than or equal to 1
local=manpp local.loss=mse | 'infopro', 'dgl' or 'ce'
local=fba local.depth=0 | greater than or equal to 1
local.detection_head=levels | 'pyramid' or 'level'
model.depth=4097 | less than or equal to 4096
model=resnet32 data=synthetic model.depth=4100 | less than or equal to 4096
model=resnet32 data=synthetic local=infopro local.convolutions=10000000000 | equal to 4096
data=voc data.years=8 | choose 07, 07+12, 12
data.mixup=-1 | greater than or equal to 0
data.mixup=nan | must be a finite number
data.cutmix=inf | must be a finite number
data.cutmix=much | must be a valid number
optim.ema=1 | less than 1
optim.ema=0 | greater than 0
data.val_fraction=1.0 | less than 1
data.eval_limit=0 | greater than or equal to 1, or null
data.std=[0.0] | greater than 0
data=synthetic data.classes=1 | greater than or equal to 2
data=synthetic data.train_samples=0 | greater than or equal to 1
tracker=wandb tracker.mode=on | must be 'online', 'offline'
tracker=wandb tracker.tags=x | must be a valid list
tracker=wandb tracker.finish_timeout_s=0 | must be greater than 0
tracker=tensorboard tracker.dir=3 | must be a valid string
"""
"""Slow cases: checks that are made as those of the tables above, or are tested elsewhere."""

FURTHER += (
    "fba=on fba.features=first | stands for the long skip of super-resolution, "
    "but this is another task\n"
)

TABLES = [OPTIONS, KEYS, COMMAND_LINES, TYPES, VALUES, CUTS, MODELS, METHODS, DATA, TRACKERS]


@pytest.mark.parametrize(
    "row",
    [
        *rows("".join(TABLES)),
        *(pytest.param(row, marks=pytest.mark.slow) for row in rows(FURTHER)),
    ],
    ids=lambda row: row[0],
)
def test_a_wrong_value_is_refused_in_one_line(refused: Refused, row: list[str]) -> None:
    refused(*row)


def test_a_value_of_two_lines_is_shown_on_one_line(refusal: Refusal) -> None:
    line = refusal(["precision='a\nb'"])
    assert line.startswith(r"precision=a\nb: ")
    assert "'fp32', 'tf32' or 'bf16'" in line


@pytest.mark.parametrize(
    ("found", "arguments", "line"),
    [
        (
            1,
            ["device=cuda"],
            "gpus=2: this machine has 1 CUDA device; use gpus=1, device=cpu, or ove",
        ),
        (2, ["gpus=3"], "gpus=3: this machine has 2 CUDA devices; use gpus=2, device=cpu, or over"),
    ],
)
def test_too_few_cuda_devices_are_refused(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch, found: int, arguments: list[str], line: str
) -> None:
    pretend_devices(monkeypatch, found)
    assert refusal(arguments).startswith(line)
