"""A data set that draws from the global random generators, in every method that may draw.

The model draws from torch's generator too, for dropout.
"""

import random
from typing import Any

import numpy as np
import pytest
import torch

from ppll_cli import load_run
from ppll_cli.data.batches import Batches, Images, Split
from ppll_cli.data.synthetic import Synthetic
from ppll_cli.launch.evaluation import evaluate
from tests.conftest import Runner, assert_same, resumed
from tests.worker.cases import DATA, VIT


def drawn() -> int:
    return int(torch.randint(80, ())) + random.randrange(80) + int(np.random.randint(80))


class DrawingBatches(Batches):
    def training_images(self, epoch: int, batch: int) -> Images:
        images, labels = super().training_images(epoch, batch)
        return images + drawn(), labels

    def evaluation_images(self, split: str, first: int, last: int) -> Images:
        images, labels = super().evaluation_images(split, first, last)
        return images + drawn(), labels


class Drawing(Synthetic):
    def load(self) -> dict[str, Split]:
        shift = drawn()
        return {
            name: Split(split.images + shift, split.labels)
            for name, split in super().load().items()
        }

    def batches(
        self, splits: Any, batch_size: int, seed: int, device: torch.device
    ) -> DrawingBatches:
        shift = drawn()
        changed = {name: Split(s.images + shift, s.labels) for name, s in splits.items()}
        return DrawingBatches(self, changed, batch_size, seed, device)


OWN = "data._target_=tests.launch.test_global_draws.Drawing"
CASE = [*DATA, *VIT, OWN, "local.modules=2"]


def test_schedules_train_and_evaluate_the_same(run: Runner) -> None:
    ll, ppll = (run(f"schedule={s}", "gpus=2", *CASE, "max_steps=4") for s in ("ll", "ppll"))
    assert_same(ppll.tensors(), ll.tensors())
    assert ppll.test == ll.test
    assert evaluate(load_run(ppll.run_dir, classes=[Drawing]), "test").result == ppll.test


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["recover=stage"]], ids=["", "recover"])
def test_a_resumed_run_ends_like_an_unbroken_one(run: Runner, more: list[str]) -> None:
    unbroken = run("schedule=ll", *CASE, "max_steps=7")
    stopped = run("schedule=ppll", "gpus=2", *CASE, *more, "max_steps=4")
    assert_same(resumed(stopped, OWN, "max_steps=7").tensors(), unbroken.tensors())
