"""Composes the configs of a sweep's cells: once for all cells that differ in seed, pattern and attention alone.

Composing takes Hydra about a tenth of a second, as long as planning a hundred cells or training a small one. What only
sets a value, or a node, of its own gives the same config when it is set in one that is composed already.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from cab.cells import search_path
from cab.compose import config_node

# Keys of a run that set a value, or a node, of their own and nothing else.
_PLAIN = ("pattern=", "seed=", "attention=")

# Of the process: launchers pickle the loader anew for each job that a worker gets.
_COMPOSED: dict[tuple[object, ...], tuple[DictConfig, DictConfig]] = {}


class SweepLoader(ConfigLoaderImpl):
    """Hydra's loader, for the planner and for launchers."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of one cell, the caller's own: equal to what Hydra's loader composes."""
        config, hydra = (copy.deepcopy(part) for part in self.shared(master_config, sweep_overrides))
        hydra.overrides.task = list(sweep_overrides)
        hydra.job.override_dirname = self._dirname(hydra, sweep_overrides)
        with open_dict(config):
            config.hydra = hydra
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def shared(self, master_config: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
        """The same in two, without a copy: the run's config, and its node ``hydra``. Good until the next call."""
        options = any(word.startswith("attention.") for word in overrides)  # of the node that composing would merge
        plain = [word for word in overrides if word.startswith(_PLAIN[:2] if options else _PLAIN)]
        others = tuple(word for word in overrides if word not in plain)
        keys = frozenset(word.partition("=")[0] for word in plain)
        place = (tuple(master_config.hydra.overrides.hydra), master_config.hydra.job.config_name, others, keys)
        if place not in _COMPOSED:
            config = super().load_sweep_config(master_config, list(overrides))
            with open_dict(config):
                _COMPOSED[place] = config, config.pop("hydra")
        config, hydra = _COMPOSED[place]
        self._set(config, hydra.runtime, plain)
        return config, hydra

    def _set(self, config: DictConfig, runtime: DictConfig, plain: Sequence[str]) -> None:
        for override in self._parser.parse_overrides(list(plain)):
            key, value = override.key_or_group, override.value()
            if key == "attention":
                node = config_node("attention", str(value), search_path(runtime))
                with open_dict(config):
                    config.attention = node
                with open_dict(runtime.choices):
                    runtime.choices.attention = value
            else:
                OmegaConf.update(config, key, value)

    def _dirname(self, hydra: DictConfig, overrides: Sequence[str]) -> str:
        style = hydra.job.config.override_dirname
        return get_overrides_dirname(
            overrides=self._parser.parse_overrides(list(overrides)),
            kv_sep=style.kv_sep,
            item_sep=style.item_sep,
            exclude_keys=style.exclude_keys,
        )

    @property
    def _parser(self) -> OverridesParser:
        return OverridesParser.create(config_loader=self)
