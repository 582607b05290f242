"""Times that replace measured ones."""

from collections.abc import Sequence

import pytest

from ppll_cli.predict.profile import Measured, Profile


class Dictated:
    """Times in milliseconds that replace measured ones; 1 ms if a time is not given."""

    def __init__(self) -> None:
        self.units: dict[str, float] = {}
        self.auxiliary: dict[tuple[int, int], float] = {}
        self.copies: dict[int, float] = {}
        self.asked: set[int] = set()


def dictate(monkeypatch: pytest.MonkeyPatch) -> Dictated:
    """Replace measured times by given ones.

    The forward pass takes a third of a unit's time, each half of a split backward pass takes a
    third too, and the optimizer's step takes none.
    """
    told = Dictated()

    def unit(self: Profile, index: int, first: bool = False) -> Measured:
        told.asked.add(self.neighbours)
        total_s = 1e-3 * told.units.get(self.ends.site.units[index].name, 1.0)
        return Measured(total_s / 3, total_s * 2 / 3, 100, 10)

    def halves(self: Profile, index: int) -> tuple[float, float]:
        share_s = unit(self, index).forward_s
        return share_s, share_s

    def auxiliary(self: Profile, modules: Sequence[range], module: int) -> Measured:
        total_s = 1e-3 * told.auxiliary.get((module, modules[module].stop), 1.0)
        return Measured(total_s / 2, total_s / 2, 7, 0)

    monkeypatch.setattr(Profile, "unit", unit)
    monkeypatch.setattr(Profile, "halves", halves)
    monkeypatch.setattr(Profile, "auxiliary", auxiliary)
    monkeypatch.setattr(Profile, "copy", lambda self, size: 1e-3 * told.copies.get(size, 1.0))
    monkeypatch.setattr(Profile, "step_s", 0.0)
    monkeypatch.setattr(Profile, "parameter_bytes", 16.0)
    monkeypatch.setattr(Profile, "_known", {})
    return told
