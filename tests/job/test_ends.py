"""What a local method exports and watches is checked before the start."""

import re
from functools import partial

import pytest
from torch import Tensor, nn

from ppll_cli.errors import ConfigError
from ppll_cli.local.greedy import Greedy
from ppll_cli.local.method import Criterion, Site, Watch
from ppll_cli.models.unit import Unit
from tests.conftest import prepared
from tests.watching import Watcher, Watching

SMALL = ["data=synthetic", "data.size=8", "data.train_samples=53", "data.test_samples=7"]
SMALL += ["batch_size=8", "model.dim=16", "model.depth=4", "model.heads=2", "device=cpu"]


class _Exports(Greedy):
    """Exports something from each module."""

    unit = Unit("more", partial(nn.Linear, 16, 2), writes=("more",))

    def exports(self, site: Site) -> list[Unit]:
        return [self.unit]


class ExportsParameters(_Exports):
    """Exports a unit with parameters, although exports are not trained."""


class ExportsTheFeature(_Exports):
    """Exports a tensor under the name that the next module reads."""

    unit = Unit("more", nn.Identity)


class ExportsUnderAUnitsName(_Exports):
    """Exports a unit with the name of a unit of the model, so that names in files would clash."""

    unit = Unit("blocks.0", nn.Identity, writes=("more",))


class ExportsInPlace(_Exports):
    """Exports a unit that changes the feature, so that the module's loss would read another one."""

    unit = Unit("more", partial(nn.ReLU, inplace=True), writes=("more",))


class ExportsANetwork(_Exports):
    """Exports a network instead of units."""

    def exports(self, site: Site) -> list[Unit]:
        """Return a network."""
        return [nn.Identity()]  # type: ignore[list-item]


class ExportsFromNowhere(_Exports):
    """Exports a unit that reads a tensor which later units make."""

    unit = Unit("more", nn.Identity, reads=("logits",), writes=("more",))


class ExportsUnderOneName(_Exports):
    """Exports units with the same name from all modules."""

    def exports(self, site: Site) -> list[Unit]:
        """Return a unit that writes another tensor for each module."""
        return [Unit("more", partial(nn.Flatten, 1), writes=(f"more.{site.module}",))]


class Mean(nn.Module):
    """Returns the mean of the features of all samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((0, 1))


class ExportsAMean(_Exports):
    """Exports a tensor without a batch, whose size other stages could not know."""

    unit = Unit("more", Mean, writes=("more",))


class SharesItsHead(Greedy):
    """Makes one head for all modules. On several stages, each module had a head of its own."""

    def criterion(self, site: Site) -> Criterion:
        """Return the criterion of the first module again."""
        if not hasattr(self, "_made"):
            self._made = super().criterion(site)
        return self._made


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (ExportsInPlace, "its export 'more' changes its input 'x' in place, but"),
        (ExportsParameters, "its export 'more' has parameters, but exports"),
        (ExportsTheFeature, "it exports 'x', a name that is taken already"),
        (ExportsUnderAUnitsName, "it exports 'blocks.0', a name that is taken already"),
        (ExportsUnderOneName, "it exports 'more', a name that is taken already"),
        (ExportsANetwork, "its exports() must return a list of Units"),
        (ExportsFromNowhere, "its export 'more' reads 'logits', which does not exist there; it "),
        (ExportsAMean, "its export 'more' writes 'more' with shape [16] for 7 samples"),
        (SharesItsHead, "its criterion() returns the same 'head.1.weight' for modules 0 and 1"),
    ],
)
def test_methods_that_make_the_wrong_things_are_refused(method: type, problem: str) -> None:
    path = f"{__name__}.{method.__name__}"
    with pytest.raises(ConfigError, match=f"^{re.escape(f'local._target_={path}: {problem}')}"):
        prepared(*SMALL, f"local._target_={path}", "local.modules=3")


class WatchesFraction(Watching):
    """Names the unit by a float, which a division can make."""

    def criterion(self, site: Site) -> Criterion:
        return Watcher(site, Watch(4 / 2, self.lag))  # type: ignore[arg-type]


WATCHING = "local._target_=tests.watching.Watching"
FRACTION = f"local._target_={__name__}.WatchesFraction"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["+local.unit=0"], f"{WATCHING}: module 0 watches 'embed', which is in no later module"),
        (["+local.unit=2"], f"{WATCHING}: module 1 watches 'blocks.1', which is in no later mod"),
        (["+local.unit=99"], f"{WATCHING}: module 0 watches unit 99, which does not exist"),
        (["+local.unit=-1"], f"{WATCHING}: module 0 watches unit -1, which does not exist"),
        ([FRACTION], f"{FRACTION}: module 0 watches unit 2.0, which does not exist"),
        (["+local.lag=0"], "local.lag=0: must be greater than or equal to 1"),
        (["+local.lag=4097"], "local.lag=4097: must be less than or equal to 4096"),
    ],
)
def test_losses_that_watch_the_wrong_units_are_refused(options: list[str], problem: str) -> None:
    """The modules are: embed and blocks.0; blocks.1; head."""
    modules = ["model.depth=2", "local.cuts=[blocks.1,head]", "gpus=2"]
    with pytest.raises(ConfigError) as caught:
        prepared(*SMALL, *modules, WATCHING, *options)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)
