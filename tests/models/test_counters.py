"""Python attributes that a forward pass changes, which no checkpoint contains, are found."""

from collections import deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.leaves.values import ValueSpec
from ppll_cli.models.trace import trace
from ppll_cli.models.unit import Unit
from ppll_cli.tasks.classification import Classification
from tests.conftest import own_model, prepared


class _Remembering(nn.Module):
    """Has attributes, which a function changes in each forward pass."""

    def __init__(self, change: Callable[[Any, Tensor], object], **attributes: object) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(3, 3), change
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        self.change(self, x)
        return self.linear(x)  # type: ignore[no-any-return]


def _add(network: Any, _: Tensor) -> None:
    network.passes += 1


def _reads_a_value(network: Any, x: Tensor) -> None:
    if network.training:
        network.passes += 1
        network.mean = x.mean().item()


CHANGES: list[tuple[Callable[[Any, Tensor], object], dict[str, object]]] = [
    (_add, {"passes": 0}),
    (_add, {"passes": 0.5}),
    (_reads_a_value, {"passes": 0}),
    (lambda network, _: setattr(network, "passes", not network.passes), {"passes": False}),
    (lambda network, _: setattr(network, "passes", network.passes + "."), {"passes": ""}),
    (lambda network, x: network.passes.append(x.mean()), {"passes": []}),
    (lambda network, _: network.passes.rotate(), {"passes": deque([1, 2, 3])}),
    (lambda network, _: network.passes.update(n=network.passes["n"] + 1), {"passes": {"n": 0}}),
    (lambda network, _: network.passes[0].add(len(network.passes[0])), {"passes": [set()]}),
    (lambda network, _: next(network.passes), {"passes": count()}),
]


def found(build: Callable[[], nn.Module]) -> tuple[str, ...]:
    (traced,) = trace([Unit("unit", build)], {"x": ValueSpec((3,), torch.float32)})
    return traced.counters


@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support will be removed from iter")
@pytest.mark.parametrize(("change", "attributes"), CHANGES)
def test_an_attribute_that_each_forward_pass_changes_is_found(
    change: Callable[[Any, Tensor], object], attributes: dict[str, object]
) -> None:
    assert found(lambda: _Remembering(change, **deepcopy(attributes))) == ("passes",)
    inner = found(lambda: nn.Sequential(nn.ReLU(), _Remembering(change, **deepcopy(attributes))))
    assert inner == ("1.passes",)


def _cache(network: Any, x: Tensor) -> None:
    network.sizes = [*x.shape]
    network.mask = torch.ones_like(x)
    network.features = [x, network.mask]
    network.longest = max(network.longest, len(x))


def _hook(network: Any, _: Tensor) -> None:
    network.linear.register_forward_hook(lambda *_: None)


def _itself(network: Any, _: Tensor) -> None:
    network.seen = [1]
    network.seen.append(network.seen)


class _Counted(nn.Module):
    """Counts its forward passes in a buffer."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x


@pytest.mark.parametrize(
    "build",
    [
        lambda: _Remembering(_cache, longest=0),
        lambda: _Remembering(_hook),
        lambda: _Remembering(_itself),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        lambda: nn.BatchNorm1d(3),
        _Counted,
    ],
)
def test_caches_hooks_and_buffers_are_harmless(build: Callable[[], nn.Module]) -> None:
    assert found(build) == ()


def test_a_run_notes_each_counter_once() -> None:
    """A worker that was restarted, or a resumed run, counted from 0 without a word."""
    notes = prepared(*own_model("Faulty", unit="second", act="raise"), "schedule=bp").notes
    (note,) = [note for note in notes if "passes" in note]
    start = "each forward pass of unit 'first' (and 2 other units) changes its attribute 'passes'"
    assert note.startswith(start)
    assert "keep it in a buffer" in note
    assert not any("attribute" in note for note in prepared("schedule=bp", "model.depth=2").notes)


def test_a_note_names_an_attribute_that_each_loss_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that counted its calls gave other weights under `ppll` than under `ll`, unnoticed."""
    plain = Classification.loss

    def loss(task: Any, prediction: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        vars(task)["losses"] = vars(task).get("losses", 0) + 1
        return plain(task, prediction, values)

    note = "each loss changes the attribute 'losses' of the task"
    assert not any(note in each for each in prepared("data=synthetic", "data.size=8").notes)
    monkeypatch.setattr(Classification, "loss", loss)
    assert any(note in each for each in prepared("data=synthetic", "data.size=8").notes)
