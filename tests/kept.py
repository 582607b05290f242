"""Keeps the configurations that Hydra reads and joins from `conf/`, to make tests faster.

For each composition Hydra reads about 25 files and merges them. The result depends only on the
chosen options, and no test changes these files. In each test Hydra still finds the chosen options,
and applies the overrides of keys. Hydra also builds a map of all choices for each file, which only
a list of defaults with interpolations needs. Here it is built only for such lists.

A configuration is kept pickled: reading it takes a quarter of the time of `deepcopy`.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.default_element import InputDefault, ResultDefault
from omegaconf import DictConfig, OmegaConf

from ppll_cli.config.options import conf_dir

OURS = {"pkg://hydra.conf", f"file://{conf_dir()}", "structured://"}
"""The places of files that no test changes. A test may add a folder of its own to these places;
then nothing is kept."""


@contextmanager
def configurations() -> Iterator[None]:
    """Keep the files that Hydra reads, and the results of joining them, while the body runs."""
    load, join = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    map_choices, copy_node = defaults_list._create_interpolation_map, DictConfig.__deepcopy__
    loaded: dict[str, Any] = {}
    joined: dict[tuple[Any, ...], bytes] = {}

    def load_once(repo: ConfigRepository, config_path: str) -> Any:
        if not _only_ours(repo):
            return load(repo, config_path)
        if config_path not in loaded:
            loaded[config_path] = load(repo, config_path)
        result = copy(loaded[config_path])
        if result is not None:
            result.defaults_list = deepcopy(result.defaults_list)  # Hydra completes its entries
        return result

    def join_once(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        if not _only_ours(repo) or not any(d.primary for d in defaults):
            return join(loader, defaults, repo)
        key = tuple((d.config_path, d.package, d.is_self, d.primary) for d in defaults)
        if key not in joined:
            first = 1 + [d.primary for d in defaults].index(True)
            # The first files are the same for all options, and take half of the time.
            copies: Any = _Copies(repo)  # it has the two members that joining uses
            if key[:first] not in joined:
                joined[key[:first]] = pickle.dumps(join(loader, defaults[:first], copies))
            config = pickle.loads(joined[key[:first]])
            config.merge_with(join(loader, defaults[first:], copies))
            joined[key] = pickle.dumps(config)
        result: DictConfig = pickle.loads(joined[key])
        return result

    def map_if_used(overrides: Any, entries: list[InputDefault], self_added: bool) -> DictConfig:
        used = any(not entry.is_self() and entry.is_interpolation() for entry in entries)
        return map_choices(overrides, entries, self_added) if used else OmegaConf.create()

    def copy_quickly(node: DictConfig, memo: dict[int, Any]) -> Any:
        if memo:
            return copy_node(node, memo)
        parent = node._get_parent()
        node._set_parent(None)  # omegaconf also copies nodes without their parents
        try:
            result = pickle.loads(pickle.dumps(node))
        finally:
            node._set_parent(parent)
        result._set_parent(parent)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", join_once)
        patch.setattr(defaults_list, "_create_interpolation_map", map_if_used)
        patch.setattr(DictConfig, "__deepcopy__", copy_quickly)
        yield


def _only_ours(repo: Any) -> bool:
    places = (source.path.rpartition("://")[2] for source in repo.get_sources())
    schemes = (source.scheme() for source in repo.get_sources())
    return {*map("{}://{}".format, schemes, places)} <= OURS


class _Copies:
    """A repository that returns copies of its configurations, because joining changes them."""

    def __init__(self, repo: Any) -> None:
        self._repo = repo
        self.get_schema_source = repo.get_schema_source

    def load_config(self, config_path: str) -> Any:
        """Return a copy of a kept configuration."""
        return deepcopy(self._repo.load_config(config_path=config_path))
