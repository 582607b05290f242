"""A checkpoint holds everything with which a resumed run must continue."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ppll_cli.job.checkpoint import unfinished_folder
from ppll_cli.worker.chunk import HeldChunk
from ppll_cli.worker.state import restore, tensors_of
from tests.conftest import assert_same
from tests.worker.inside import run_inside
from tests.worker.test_chunk import whole_model

SMALL = ["data=synthetic", "data.size=8", "data.train_samples=24", "data.test_samples=4"]
SMALL += ["batch_size=4", "epochs=1"]


class Saved(dict[str, Tensor]):
    @property
    def names(self) -> Iterable[str]:
        return self.keys()


def counting(value: float) -> HeldChunk:
    """A module whose first unit and criterion have a buffer that is not persistent."""
    chunk = whole_model("vit", ["local=greedy"], modules=2)[0]
    for network in (chunk.networks[0], chunk.networks[-1]):
        network.register_buffer("seen", torch.tensor(value).expand(2), persistent=False)
    return chunk


def test_buffers_that_are_not_persistent_are_saved_apart_from_the_model() -> None:
    """A resumed run began with their initial values, and so trained something else."""
    saved = Saved(tensors_of([counting(3.0)]))
    keys = [name for name in saved if name.endswith("seen")]
    assert keys == ["transient.model.embed.seen", "transient.auxiliary.0.seen"]
    chunk = counting(0.0)
    restore([chunk], saved)
    for network in (chunk.networks[0], chunk.networks[-1]):
        assert network.get_buffer("seen").tolist() == [3.0, 3.0]


def test_a_checkpoint_without_these_buffers_can_be_resumed() -> None:
    """Earlier versions did not save them."""
    tensors = tensors_of([counting(3.0)])
    chunk = counting(0.0)
    restore([chunk], Saved({n: t for n, t in tensors.items() if not n.startswith("transient.")}))
    assert chunk.networks[0].get_buffer("seen").tolist() == [0.0, 0.0]


def test_a_buffer_that_two_networks_share_stays_shared() -> None:
    tensors = tensors_of([counting(3.0)])
    chunk = counting(0.0)
    first = chunk.networks[0]
    first.add_module("inner", torch.nn.Identity())
    inner = first.get_submodule("inner")
    inner.register_buffer("same", first.get_buffer("seen"), persistent=False)
    restore([chunk], Saved(tensors))
    assert inner.get_buffer("same") is first.get_buffer("seen")
    assert first.get_buffer("seen").tolist() == [3.0, 3.0]


def test_buffers_of_exports_are_saved(tmp_path: Path) -> None:
    """A resumed run began with their initial values, and so trained something else."""
    case = ["local._target_=tests.remembering.Remembering", "+local.exports=true"]
    case += ["local.modules=3", "model.dim=16", "model.depth=3", "model.heads=2", *SMALL]
    expected = run_inside(tmp_path / "whole", "schedule=ll", *case)
    assert expected.tensors["transient.export.remembered.average"] != 0
    run_inside(tmp_path / "first", "schedule=ppll", "gpus=3", *case, "max_steps=3")
    kept = unfinished_folder(tmp_path / "first", 3)
    found = run_inside(tmp_path / "then", "schedule=ll", *case, start=3, checkpoint=kept)
    assert_same(found.tensors, expected.tensors)


class Counted(Mapping[str, Tensor]):
    """Counts how often something looks at all names of a checkpoint."""

    def __init__(self, saved: Mapping[str, Tensor]) -> None:
        self.saved, self.looks = saved, 0

    def __getitem__(self, name: str) -> Tensor:
        return self.saved[name]

    def __iter__(self) -> Iterator[str]:
        self.looks += 1
        return iter(self.saved)

    def __len__(self) -> int:
        return len(self.saved)


def test_a_checkpoint_is_searched_once_and_not_for_each_parameter() -> None:
    """The time to resume once grew with the square of the number of parameters."""
    chunk = whole_model("vit", ["local=greedy"], modules=2)[0]
    assert chunk.optimizer is not None
    for parameter in chunk.parameters:
        parameter.grad = torch.ones_like(parameter)
    chunk.optimizer.step(0.1, None)
    saved = Counted(tensors_of([chunk]))
    fresh = whole_model("vit", ["local=greedy"], modules=2)[0]
    restore([fresh], saved)
    assert saved.looks == 1
    assert_same(tensors_of([fresh]), dict(saved))
    assert any(name.startswith("optimizer.") for name in saved)
