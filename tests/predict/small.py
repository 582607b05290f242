"""Profiles of a small vision transformer, and the chain of its units."""

from ppll_cli.config import settings
from ppll_cli.job.devices import device_of
from ppll_cli.predict.chain import Work
from ppll_cli.predict.profile import Profile
from ppll_cli.prepare.preparation import profile_of
from ppll_cli.prepare.subject import examine
from tests.conftest import compose_config
from tests.predict.given import SMALL

UNITS = ["embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"]


def made(*overrides: str) -> Profile:
    config, _ = compose_config([*SMALL, *overrides])
    parsed = settings.parse(config)
    return profile_of(parsed, examine(parsed), device_of(parsed))


def work(*overrides: str) -> Work:
    """Return the description of a chain of all units of a model."""
    found = made(*overrides)
    return found._work([(index, False) for index in range(len(found.ends.site.units))])
