"""Composes the configs of a sweep's cells: once for all cells that differ in seed, pattern and attention alone.

Composing takes Hydra about a tenth of a second, as long as planning a hundred cells or training a small one. What only
sets a value, or a node, of its own gives the same config when it is set in one that is composed already.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from cab.cells import search_path
from cab.compose import config_node

# Keys of a run that set a value, or a node, of their own and nothing else.
_PLAIN = ("pattern=", "seed=", "attention=")

# Of the process: launchers pickle the loader anew for each job that a worker gets.
_COMPOSED: dict[tuple[object, ...], DictConfig] = {}
_PARSED: dict[str, Override] = {}
_TAKEN_APART: dict[tuple[object, ...], tuple[DictConfig, DictConfig]] = {}


class SweepLoader(ConfigLoaderImpl):
    """Hydra's loader, for the planner and for launchers. What it returns is good until the next call in this process:
    a copy of a config takes Hydra as long as a small step of training, and its launchers keep none of it."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of one cell: equal to what Hydra's loader composes where the sweep was started."""
        place, parsed = self._place(master_config, sweep_overrides)
        if place not in _COMPOSED:
            _COMPOSED[place] = super().load_sweep_config(master_config, list(sweep_overrides))
        config = _COMPOSED[place]
        OmegaConf.set_readonly(config.hydra, False)  # as composed; a job's start makes it read-only
        config.hydra.runtime.cwd = master_config.hydra.runtime.cwd  # Hydra takes that of the worker
        _set(config, config.hydra.runtime, parsed)
        config.hydra.overrides.task = list(sweep_overrides)
        style = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=parsed, kv_sep=style.kv_sep, item_sep=style.item_sep, exclude_keys=style.exclude_keys
        )
        return config

    def apart(self, master_config: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
        """The same in two, for a planner: the run's config, and its node ``hydra`` without what names the job."""
        place, parsed = self._place(master_config, overrides)
        if place not in _TAKEN_APART:
            config = super().load_sweep_config(master_config, list(overrides))
            with open_dict(config):
                _TAKEN_APART[place] = config, config.pop("hydra")
        config, hydra = _TAKEN_APART[place]
        _set(config, hydra.runtime, parsed)
        return config, hydra

    def _place(self, master_config: DictConfig, overrides: Sequence[str]) -> tuple[tuple[object, ...], list[Override]]:
        """What cells have in common that are composed once, and the parsed overrides."""
        plain = {override for override in overrides if _is_plain(override, overrides)}
        others = tuple(override for override in overrides if override not in plain)
        keys = frozenset(override.partition("=")[0] for override in plain)
        fixed = tuple(master_config.hydra.overrides.hydra)
        place = (fixed, master_config.hydra.job.config_name, others, keys)
        return place, [self._parsed(override) for override in overrides]

    def _parsed(self, override: str) -> Override:
        if override not in _PARSED:
            (_PARSED[override],) = OverridesParser.create(config_loader=self).parse_overrides([override])
        return _PARSED[override]


def _is_plain(override: str, overrides: Sequence[str]) -> bool:
    """Options of an attention are merged into its node when it is composed, so it is not plain beside them."""
    options = any(word.startswith("attention.") for word in overrides)
    return override.startswith(_PLAIN[:2] if options else _PLAIN)


def _set(config: DictConfig, runtime: DictConfig, parsed: Sequence[Override]) -> None:
    lines = [override.input_line or "" for override in parsed]
    for override, line in zip(parsed, lines, strict=True):
        if not _is_plain(line, lines):
            continue
        key, value = override.key_or_group, override.value()
        if key == "attention":
            node = config_node("attention", str(value), search_path(runtime))
            with open_dict(config):
                config.attention = node
            with open_dict(runtime.choices):
                runtime.choices.attention = value
        else:
            OmegaConf.update(config, key, value)
