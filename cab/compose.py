"""Composes Hydra configs for the verbs, and turns every error of a config into one line.

One :class:`Composer` is open per process; it knows the search path (ours, ``--config-dir``, installed plug-ins).
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attention_zoo.registry import plugins
from cab import schema
from cab.errors import UserError, one_line, unknown
from cab.mistakes import check_overrides, explain
from cab.settings import Setting

TASK_ENTRY_POINTS = "tasks"
# The one word that may stand where a list is wanted.
ALL = re.compile(r"^(attentions|patterns|tasks)=all$")


def _register() -> None:
    """Schemas of the verbs, and a config node for each mechanism and task that an installed package brings."""
    store = ConfigStore.instance()
    for verb, kind in schema.VERBS.items():
        store.store(name=f"{verb}_schema", node=kind)
    for group, kind in schema.GROUPS.items():
        store.store(group=group, name="schema", node=kind)
    installed = {"attention": plugins(), "task": {point.name: point for point in entry_points(group=TASK_ENTRY_POINTS)}}
    for group, points in installed.items():
        for name, point in points.items():
            store.store(group=group, name=name, node={"_target_": point.value.replace(":", ".")})


def search_path_override(search_path: Sequence[str]) -> list[str]:
    """The override that makes Hydra search these folders too."""
    return [f"hydra.searchpath=[{','.join(map(repr, search_path))}]"] if search_path else []


@cache
def config_node(group: str, name: str, search_path: tuple[str, ...]) -> dict[str, Any]:
    """One config of a group as its YAML says it, interpolations unresolved; Hydra is open. Not to be changed."""
    composed = hydra_compose("bare", [*search_path_override(search_path), f"+{group}={name}"])
    container = OmegaConf.to_container(composed[group], resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def matching(what: str, wanted: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """The names among ``allowed`` that names and wildcards mean, in the order given; ``all`` means every one.

    Raises:
        UserError: one means none; ``what`` says what it is a name of.
    """
    chosen: list[str] = []
    for pattern in wanted:
        matches = [name for name in allowed if pattern == "all" or fnmatchcase(name, pattern)]
        if not matches:
            raise unknown(what, pattern, ["all", *allowed])
        chosen += [name for name in matches if name not in chosen]
    return chosen


class Composer:
    """The open Hydra context: composes the configs of verbs, lists the options of groups, resolves settings."""

    def __init__(self, config_dir: Path | None = None) -> None:
        if config_dir is not None and not config_dir.is_dir():
            raise UserError(f"--config-dir {str(config_dir)!r} is not a folder")
        self.config_dir = config_dir

    def __enter__(self) -> Composer:
        _register()
        GlobalHydra.instance().clear()
        if self.config_dir is not None:
            folder = str(self.config_dir.resolve())
            # Launchers start other processes, so sys.path alone would not reach the plug-in there.
            sys.path.insert(0, folder)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        self._context = initialize_config_module("cab.conf", job_name="cab", version_base="1.3")
        self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, traceback)

    @property
    def search_path(self) -> tuple[str, ...]:
        """The folders that are searched beside ours."""
        return () if self.config_dir is None else (f"file://{self.config_dir.resolve()}",)

    @property
    def search_path_override(self) -> list[str]:
        return search_path_override(self.search_path)

    def compose(self, verb: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
        """The config of a verb; a mistake in it is a :class:`UserError`."""
        given = [ALL.sub(r"\1=[all]", override) for override in overrides]
        check_overrides(self.parse(given), self.groups)
        with self.one_line_errors(verb):
            config = hydra_compose(verb, [*self.search_path_override, *given], return_hydra_config=with_hydra)
        if verb in schema.VERBS:
            known = {field.name for field in dataclasses.fields(schema.VERBS[verb])}
            # Hydra's +key=value would add a key that nothing reads.
            for key in sorted(str(key) for key in set(config) - known - {"hydra"}):
                raise unknown("key", key, known)
        return config

    @contextmanager
    def one_line_errors(self, verb: str) -> Iterator[None]:
        """Every error that Hydra or OmegaConf raises inside becomes a :class:`UserError`."""
        try:
            yield
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(verb, error, self.options)) from error

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """The overrides of a command line, parsed."""
        with self.one_line_errors("run"):
            return OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))

    @cached_property
    def loader(self) -> ConfigLoader:
        # Sources of the search path are found when a config is composed, so this must come first.
        hydra_compose("bare", self.search_path_override)
        return GlobalHydra.instance().config_loader()

    @cached_property
    def groups(self) -> list[str]:
        """The config groups."""
        found = {group for group in self.loader.list_groups("") if group != "hydra"}
        if self.config_dir is not None:
            found |= {path.parent.name for path in self.config_dir.glob("*/*.yaml")}
        return sorted(found)

    def options(self, group: str) -> list[str]:
        """The configs of a group, from every source on the search path."""
        found = set(self.loader.get_group_options(group, ObjectType.CONFIG))
        if self.config_dir is not None and (self.config_dir / group).is_dir():
            found |= {path.stem for path in (self.config_dir / group).glob("*.yaml")}
        return sorted(found - {"schema"})

    def node(self, group: str, name: str) -> dict[str, Any]:
        """One config of a group as its YAML says it, interpolations unresolved."""
        with self.one_line_errors("bare"):
            return config_node(group, name, self.search_path)

    def select(self, group: str, wanted: Sequence[str]) -> list[str]:
        """The options of a group that names and wildcards mean, in the order given; ``all`` means every one."""
        return matching(group, wanted, self.options(group))

    def settings(self, wanted: Sequence[str]) -> list[Setting]:
        """Attention settings by name, wildcard or dotted path of a class."""
        known = set(self.options("attention"))
        found: dict[str, Setting] = {}
        for name in wanted:
            if "." in name and name not in known and "*" not in name:
                found[name] = self._checked(name, {"_target_": name})
                continue
            for option in self.select("attention", [name]):
                found[option] = self._checked(option, self.node("attention", option))
        return list(found.values())

    @staticmethod
    def _checked(name: str, node: Mapping[str, Any]) -> Setting:
        try:
            return Setting.from_node(name, node)
        except ValueError as error:
            raise UserError(one_line(error)) from error
