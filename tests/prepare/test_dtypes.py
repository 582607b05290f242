"""Tensors of dtypes that the next unit or a loss cannot read are refused before the start."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.method import Criterion, LocalMethod, Site
from ppll_cli.models.unit import ImageSpec, Unit
from ppll_cli.tasks.classification import classes_of
from ppll_cli.tasks.task import Task
from tests.conftest import assert_same, own_model, prepared
from tests.worker.inside import run_inside

DTYPES = ["float64", "float16", "bfloat16", "complex64", "int64", "bool"]


class _Typed(nn.Linear):
    """A Linear layer that returns a given dtype."""

    def __init__(self, pixels: int, dtype: torch.dtype) -> None:
        super().__init__(pixels, 8)
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        return (4 * super().forward(image.flatten(1))).to(self.dtype)


class _Converting(nn.Linear):
    """A Linear layer that converts its input to float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x.real if x.is_complex() else x).float())


class Typed:
    """A model whose first unit returns a given dtype. The next unit may convert it."""

    def __init__(self, *, dtype: str, converts: bool = True) -> None:
        self.dtype, self.converts = getattr(torch, dtype), converts

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return three units."""
        pixels = image.channels * image.height * image.width
        return [
            Unit("typed", partial(_Typed, pixels, self.dtype), ("image",)),
            Unit("next", partial(_Converting if self.converts else nn.Linear, 8, 8)),
            Unit("head", partial(nn.Linear, 8, classes_of(task, "typed"))),
        ]


class Tokens:
    """A model whose first unit makes token ids, which the next unit embeds."""

    class _Ids(nn.Flatten):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image).clamp(0, 1).mul(7).long()

    def units(self, image: ImageSpec, task: Task) -> list[Unit]:
        """Return three units."""
        head = nn.Sequential
        return [
            Unit("ids", self._Ids, ("image",)),
            Unit("embed", partial(nn.EmbeddingBag, 8, 8)),
            Unit("head", lambda: head(nn.ReLU(), nn.Linear(8, classes_of(task, "tokens")))),
        ]


class Convert(LocalMethod):
    """A local method whose head converts features to float32."""

    def criterion(self, site: Site) -> Criterion:
        """Return a Linear head."""
        head = _Converting(site.spec.shape[0], classes_of(site.task, "convert"))
        return Criterion(head, (site.feature,), site.task)


def typed(dtype: str, **options: object) -> list[str]:
    return own_model("prepare.test_dtypes.Typed", dtype=dtype, **options)


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=[pytest.mark.slow] * (d not in ("float64", "int64"))) for d in DTYPES],
)
def test_a_local_loss_that_cannot_read_a_modules_output_is_refused(dtype: str) -> None:
    """A worker failed, with a message of torch that named no unit."""
    cut = "local.cuts=[next]"
    with pytest.raises(ConfigError, match="the auxiliary network of module 0 cannot read") as error:
        prepared(*typed(dtype), cut)
    found = str(error.value)
    assert found.startswith("local=greedy: ")
    assert f"'x', which unit 'typed' returns as {dtype} (RuntimeError: mat1 and mat2 m" in found
    assert "end the module at another unit (local.cuts), or return float32 there" in found
    assert "\n" not in found
    prepared(*typed(dtype), "local.cuts=[head]")
    prepared(*typed(dtype), cut, "schedule=gpipe")


@pytest.mark.slow
def test_a_partition_does_not_cut_where_the_loss_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring such a loss failed with a traceback."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = prepared(*typed("float64"), "gpus=2", "partition=profile")
    assert found.cuts == ("head",)
    with pytest.raises(ConfigError, match="of module 0 cannot read 'x', which unit 'typed'"):
        prepared(*typed("float64"), "gpus=3", "partition=profile")
    with pytest.raises(ConfigError, match="unit 'next' cannot read 'x', which unit 'typed'"):
        prepared(*typed("float64", converts=False), "gpus=2", "partition=profile")


def test_bf16_casts_half_but_not_double() -> None:
    prepared(*typed("float16"), "local.cuts=[next]", "precision=bf16")
    with pytest.raises(ConfigError, match="as float64"):
        prepared(*typed("float64"), "local.cuts=[next]", "precision=bf16")


def test_a_unit_may_return_a_dtype_without_random_numbers() -> None:
    """For float8, torch can draw no random numbers."""
    prepared(*typed("float8_e4m3fn"), "schedule=bp")


def test_units_are_tested_with_the_same_numbers_in_each_process() -> None:
    """So all machines come to the same result, and later code gets the same random numbers."""
    before = torch.get_rng_state()
    prepared(*typed("float64"), "schedule=bp")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_unit_that_cannot_read_its_input_is_refused() -> None:
    refused = r"^model\._target_=\S+: unit 'next' cannot read 'x', which unit 'typed' returns as fl"
    with pytest.raises(ConfigError, match=rf"{refused}oat64 .*; convert it in forward\(\)"):
        prepared(*typed("float64", converts=False), "schedule=bp")


@pytest.mark.parametrize(
    "dtype",
    ["float64", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int64", "complex64"))],
)
def test_a_local_method_that_reads_another_dtype_trains_the_same_under_ll_and_ppll(
    tmp_path: Path, dtype: str
) -> None:
    """Channels between processes carry these dtypes in `tests/transport/test_channel.py`."""
    method = "local._target_=tests.prepare.test_dtypes.Convert"
    tiny = [*typed(dtype), method, "local.cuts=[next]", "max_steps=3", "data.eval_limit=20"]
    assert_same_runs(tmp_path, [*tiny, "schedule=ll"], [*tiny, "schedule=ppll"])


def test_token_ids_cross_a_cut_without_a_gradient(tmp_path: Path) -> None:
    tiny = [*own_model("prepare.test_dtypes.Tokens"), "max_steps=3", "data.eval_limit=20"]
    cut = ["gpus=2", "partition=manual", "partition.cuts=[embed]"]
    assert_same_runs(tmp_path, [*tiny, "schedule=bp"], [*tiny, "schedule=pp", *cut])


def assert_same_runs(folder: Path, one: list[str], other: list[str]) -> None:
    first, second = run_inside(folder / "one", *one), run_inside(folder / "other", *other)
    assert_same(first.tensors, second.tensors)
    assert first.test == second.test
    assert first.test
