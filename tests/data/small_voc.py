"""The small VOC 2007 of the fixture `make_voc`, and its batches."""

from collections.abc import Callable

import torch

from ppll_cli.data.scenes.batches import SceneBatches
from ppll_cli.data.voc import Voc

MakeVoc = Callable[..., Voc]
CPU = torch.device("cpu")


def batches_of(dataset: Voc, seed: int = 0, batch_size: int = 4) -> SceneBatches:
    return dataset.batches(dataset.load(), batch_size, seed, CPU)
