"""Resolves a composed ``run`` config to a :class:`~cab.run.Cell`: names, options, pattern, folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cab import device as devices
from cab import protocol
from cab.errors import UserError, blame_user
from cab.run import Cell, resolve_pattern
from cab.schema import Run
from cab.settings import Setting


@cache
def _default_node(group: str, name: str, context: int) -> dict[str, Any]:
    """One config of a group as its YAML says it; ``context`` tells one open Hydra from the next."""
    composed = hydra_compose("bare", [*_search_path(), f"+{group}={name}"])
    container = OmegaConf.to_container(composed[group], resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _search_path() -> list[str]:
    """The override that makes the open Hydra see a ``--config-dir`` again."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    sources = hydra.config_loader.get_search_path().get_path()
    extra = [element.path for element in sources if element.provider == "hydra.searchpath in command-line"]
    return [f"hydra.searchpath=[{','.join(repr(path) for path in extra)}]"] if extra else []


def _changed(group: str, name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a node that differ from its YAML."""
    default = _default_node(group, name, id(GlobalHydra.instance().hydra))
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


def resolve(config: DictConfig, choices: Mapping[str, str]) -> Cell:
    """The cell of a composed config; ``choices`` are Hydra's names of the groups' options.

    Raises:
        UserError: whatever the config asks for that is not there, in one line.
    """
    run = OmegaConf.to_object(config)
    assert isinstance(run, Run)
    attention, task = _node(config, "attention"), _node(config, "task")
    attention_changed = _changed("attention", choices["attention"], attention)
    task_changed = _changed("task", choices["task"], task)
    with blame_user():
        setting = Setting.from_node(_named(choices["attention"], attention_changed), attention)
        baseline = Setting.from_node(
            run.baseline, _default_node("attention", run.baseline, id(GlobalHydra.instance().hydra))
        )
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
