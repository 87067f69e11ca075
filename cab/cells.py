"""Resolves a composed ``run`` config to a :class:`~cab.run.Cell`: names, options, pattern, folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from omegaconf import DictConfig, OmegaConf

from cab import device as devices
from cab import protocol
from cab.errors import UserError, blame_user
from cab.run import Cell, resolve_pattern
from cab.schema import Run
from cab.settings import Setting


@cache
def _default_node(group: str, name: str, search_path: tuple[str, ...]) -> dict[str, Any]:
    """One config of a group as its YAML says it, interpolations unresolved."""
    found = [f"hydra.searchpath=[{','.join(map(repr, search_path))}]"] if search_path else []
    composed = hydra_compose("bare", [*found, f"+{group}={name}"])
    container = OmegaConf.to_container(composed[group], resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _search_path(runtime: DictConfig) -> tuple[str, ...]:
    """The folders of ``--config-dir``."""
    return tuple(
        f"{source['schema']}://{source.path}"
        for source in runtime.config_sources
        if source.provider == "hydra.searchpath in command-line"
    )


def _changed(default: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a node that differ from its YAML."""
    interpolated = {key for key, value in default.items() if isinstance(value, str) and value.startswith("${")}
    return {key: value for key, value in node.items() if key not in interpolated and default.get(key) != value}


def _named(name: str, changed: Mapping[str, Any]) -> str:
    """``performer``, or ``performer[num_features=64]``."""
    return f"{name}[{','.join(f'{key}={value}' for key, value in sorted(changed.items()))}]" if changed else name


def _node(config: DictConfig, group: str) -> dict[str, Any]:
    container = OmegaConf.to_container(config[group], resolve=True)
    if not isinstance(container, dict) or "_target_" not in container:
        raise UserError(f"{group}: its YAML needs a _target_, the dotted path of a class")
    return {str(key): value for key, value in container.items()}


def resolve(config: DictConfig, runtime: DictConfig) -> Cell:
    """The cell of a composed config; ``runtime`` is its ``hydra.runtime``, which knows the names that were chosen.

    Raises:
        UserError: whatever the config asks for that is not there, in one line.
    """
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    attention, task = _node(config, "attention"), _node(config, "task")
    choices, path = runtime.choices, _search_path(runtime)
    attention_changed = _changed(_default_node("attention", choices["attention"], path), attention)
    task_changed = _changed(_default_node("task", choices["task"], path), task)
    with blame_user():
        setting = Setting.from_node(_named(choices["attention"], attention_changed), attention)
        baseline = Setting.from_node(run.baseline, _default_node("attention", run.baseline, path))
    device = devices.resolve_device(run.device)
    devices.resolve_dtype(run.dtype, training=True)
    devices.resolve_threads(run.threads)
    overridden: dict[str, Any] = {f"task.{key}": value for key, value in task_changed.items()}
    if run.size != run.protocol.size:
        overridden["size"] = run.size
    if run.seed not in run.protocol.seeds:
        overridden["seed"] = run.seed
    for key in ("max_steps", "learning_rate"):
        if getattr(run.trainer, key) is not None:
            overridden[f"trainer.{key}"] = getattr(run.trainer, key)
    return Cell(
        config=run,
        task_name=choices["task"],
        task_setting=_named(choices["task"], task_changed),
        task_target=str(task["_target_"]),
        task_options={key: value for key, value in task.items() if key != "_target_"},
        setting=setting,
        baseline=baseline,
        pattern=resolve_pattern(run.pattern, choices["task"], str(task["_target_"])),
        device=device,
        protocol=protocol.effective_name(run.protocol, overridden),
    )
