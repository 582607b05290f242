"""Hydra's plugins, which users may install, work with this program's configuration."""

import pytest

from ppll_cli.config import settings
from tests.conftest import compose_config


@pytest.mark.filterwarnings("ignore::FutureWarning")  # optuna warns about a use in Hydra's plugin
@pytest.mark.parametrize(
    ("plugin", "overrides"),
    [
        ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
        (
            "hydra_submitit_launcher",
            ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=4"],
        ),
        (
            "hydra_optuna_sweeper",
            ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=20", "hydra.sweeper.n_jobs=1"],
        ),
    ],
)
def test_an_installed_plugin_composes(plugin: str, overrides: list[str]) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}", reason="the plugin is not installed")
    config, _ = compose_config(overrides)
    settings.parse(config)
