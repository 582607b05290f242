"""Seeds differ for different purposes and arguments, and never change."""

from collections.abc import Callable
from itertools import product

import pytest

from ppll_cli import seeding

SMALL = (0, 1, 11, 111)
NAMES = ("stem", "blocks.1", "blocks.11", "1", "")

ALL: dict[Callable[..., int], list[tuple[int | str, ...]]] = {
    seeding.unit_weights: list(product(SMALL, NAMES)),
    seeding.auxiliary_weights: list(product(SMALL, SMALL)),
    seeding.unit_forward: list(product(SMALL, NAMES, SMALL, SMALL)),
    seeding.auxiliary_forward: list(product(SMALL, SMALL, SMALL, SMALL)),
    seeding.constructor: list(product(SMALL, ("model", "local"))),
    seeding.watching: list(product(SMALL, SMALL, (-1, *SMALL))),
    seeding.sample_order: list(product(SMALL, SMALL)),
    seeding.augmentation: list(product(SMALL, SMALL, SMALL)),
    seeding.mixing: list(product(SMALL, SMALL, SMALL)),
}


def test_different_draws_have_different_seeds() -> None:
    seeds = [purpose(*parts) for purpose, cases in ALL.items() for parts in cases]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (seeding.unit_weights(0, "stem"), 6447127715566905024),
        (seeding.auxiliary_weights(0, 1), 1218828659926863881),
        (seeding.unit_forward(0, "stem", 1, 2), 6836150214175535765),
        (seeding.auxiliary_forward(0, 1, 2, 3), 918047572240974850),
        (seeding.constructor(0, "model"), 5317550080791234497),
        (seeding.watching(0, 1, 2), 8678527370568130021),
        (seeding.sample_order(0, 1), 675545320895157851),
        (seeding.augmentation(0, 1, 2), 6080848789807476015),
        (seeding.mixing(0, 1, 2), 3705626779466556164),
    ],
)
def test_seeds_equal_those_of_earlier_versions(seed: int, expected: int) -> None:
    """With other seeds, a resumed run would continue with other random numbers."""
    assert seed == expected
