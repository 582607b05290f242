"""What Hydra composes, as plain data. Imports it only when it is needed."""

from collections.abc import Mapping, Sequence
from typing import Any


def composed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration, resolved, and the option chosen in each group; Hydra must be initialised."""
    from hydra import compose
    from omegaconf import OmegaConf

    whole = compose("config", list(overrides), return_hydra_config=True)
    ours = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    config: Any = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    return config, own_choices(whole.hydra.runtime.choices)


def own_choices(choices: Mapping[Any, Any]) -> dict[str, str]:
    """The options chosen in our groups, without those of Hydra's own."""
    return {str(k): str(v) for k, v in choices.items() if "hydra" not in str(k)}
