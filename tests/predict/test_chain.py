"""A chain of units that is measured: its training step, and the memory that it keeps."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from ppll_cli.models.vit import Block
from ppll_cli.predict.chain import Chain
from tests.predict.small import UNITS, work


def test_a_chain_runs_a_training_step() -> None:
    """Random numbers replace a tensor only if the chain lacks the unit that makes it."""
    whole = work()
    chain = Chain(whole)
    before = [parameter.clone() for parameter in chain.parameters]
    seconds = chain.step()
    assert len(seconds) == 2 * len(UNITS) + 1
    assert not chain._made.keys() - {("image", whole.parts[0].inputs[0])}
    assert any(not torch.equal(a, b) for a, b in zip(before, chain.parameters, strict=True))
    assert all(parameter.grad is None for parameter in chain.parameters)
    short = Chain(replace(whole, parts=whole.parts[2:4]))
    assert len(short.step()) == 5
    assert [name for name, _ in short._made] == ["x"]


def test_the_memory_that_a_transformer_block_keeps_is_measured() -> None:
    """By hand: a transformer block saves float32 tensors of the size of tokens [8, 5, 16]."""
    tokens = 8 * 5 * 16 * 4
    norms, projected, attention, first_sum, hidden, gelu, output = 2, 3, 1, 1, 4, 4, 1
    all_of_them = norms + projected + attention + first_sum + hidden + gelu + output
    (_, block, *_) = (saved.saved_bytes for saved in Chain(work()).saved_bytes())
    # LayerNorm's means and deviations, and attention's sums of exponentials, are small.
    assert all_of_them * tokens <= block <= 1.05 * all_of_them * tokens


def test_recomputing_keeps_less_memory_and_runs_forward_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block keeps only its output, tokens [8, 5, 16]. Its backward computes the rest again."""
    whole, again = (Chain(work(f"recompute={on}")) for on in ("false", "true"))
    for before, after in zip(whole.saved_bytes(), again.saved_bytes(), strict=True):
        assert before.recomputed_bytes == 0
        assert sum(after) == before.saved_bytes
    assert again.saved_bytes()[1].saved_bytes == 8 * 5 * 16 * 4
    passes = Counter[bool]()
    forward = Block.forward

    def counted(self: Block, x: torch.Tensor) -> torch.Tensor:
        passes[self in again.networks] += 1
        return forward(self, x)

    monkeypatch.setattr(Block, "forward", counted)
    for chain in (whole, again):
        assert len(chain.step()) == 2 * len(UNITS) + 1
    assert passes == {False: 4, True: 8}
