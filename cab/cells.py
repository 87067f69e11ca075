"""A run, resolved: what decides its result, the key that follows from it, and where its records go.

:func:`resolve` makes a :class:`Cell` of a composed ``run`` config: names, options, pattern, folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from attention_zoo.contract import Pattern
from attention_zoo.registry import mechanism, names
from cab import device as devices
from cab import protocol
from cab.compose import config_node
from cab.errors import UserError, blame_user, unknown
from cab.measure.environment import hardware_id, usable_cores
from cab.records import RecordStore
from cab.schema import Finetune, Run, Trainer
from cab.settings import Setting
from cab.source_hash import source_hash
from cab.task_settings import make_task, resolve_pattern
from tasks.contract import Recipe, Split, Task

EVALUATED: tuple[Split, ...] = ("test", "validation")


@dataclass(frozen=True)
class Cell:
    """One run, resolved: everything that decides its result, and where its records go."""

    config: Run
    task_name: str
    task_setting: str
    task_target: str
    task_options: Mapping[str, Any]
    setting: Setting
    baseline: Setting
    pattern: Pattern
    device: str
    protocol: str
    source: Cell | None = None  # whose trained weights the run begins from

    @cached_property
    def task(self) -> Task:
        """The task object; what its options say wrongly is a :class:`UserError`."""
        return make_task(self.task_name, self.task_target, {**self.task_options, "pattern": self.pattern})

    @property
    def store(self) -> RecordStore:
        return RecordStore(protocol.folder(self.config.results, self.protocol, self.hardware))

    @property
    def hardware(self) -> str:
        """The machine's name, with how many of its devices train together."""
        return hardware_id(self.device, self.config.devices)

    @property
    def recipe(self) -> Recipe:
        """The task's recipe at its size, with what the trainer config overrides."""
        recipe = replace(self.task.recipe, **overridden_recipe(self.config.trainer))
        if self.source is not None:
            rate = self.config.finetune.learning_rate
            rate = recipe.learning_rate / 10 if rate is None else rate
            recipe = replace(recipe, max_steps=self.config.finetune.steps, learning_rate=rate)
        return replace(recipe, warmup_steps=min(recipe.warmup_steps, recipe.max_steps))

    @property
    def split(self) -> Split:
        """What the run is evaluated on."""
        return next(split for split in EVALUATED if split == self.config.split)

    @property
    def unsupported(self) -> str | None:
        """The card's reason where the mechanism has no form for the pattern."""
        return self.setting.card.unsupported.get(self.pattern)

    @cached_property
    def key(self) -> str:
        """Hash of the resolved config that affects the result, of the code, torch, hardware and threads."""
        identity = {
            "task": [self.task_target, dict(self.task_options)],
            "attention": [self.setting.target, dict(self.setting.options)],
            "baseline": [self.baseline.target, dict(self.baseline.options)],
            "pattern": self.pattern,
            "slots": self.config.slots,
            "seed": self.config.seed,
            "trainer": overridden_recipe(self.config.trainer),
            "dtype": self.config.dtype,
            "code": source_hash(
                [self.setting.module, self.baseline.module, self.task_target.rpartition(".")[0], "cab.train"]
            ),
            **machine_identity(self.device, self.config.devices),
            **self._other_split,
        }
        if self.source is not None:
            identity |= {"source": self.source.key, "finetune": asdict(self.config.finetune)}
        return digest(identity)

    @cached_property
    def floor_key(self) -> str:
        """Key of the task's floors, which no mechanism enters."""
        module = self.task_target.rpartition(".")[0]
        return digest(
            {
                "task": [self.task_target, dict(self.task_options), self.pattern],
                "code": source_hash([module]),
                **self._other_split,
            }
        )

    @property
    def _other_split(self) -> dict[str, str]:
        """The split in a key, where it is not the one of results."""
        return {} if self.split == "test" else {"split": self.split}

    def resolved(self) -> dict[str, Any]:
        """The resolved config, with the names that were chosen."""
        return {
            **asdict(self.config),
            "attention": {"setting": self.setting.name, "target": self.setting.target, **self.setting.options},
            "task": {"name": self.task_name, "target": self.task_target, **self.task_options},
            "pattern": str(self.pattern),
            "device": self.device,
        }

    def columns(self) -> dict[str, Any]:
        """The columns that all rows of the run share."""
        task = self.task
        target, source = task.lengths
        return {
            "protocol": self.protocol,
            "pattern": str(self.pattern),
            "task": self.task_name,
            "task_setting": self.task_setting,
            "data": task.card.source,
            "size": task.size,
            "length_q": target,
            "length_kv": target if source is None else source,
            "dtype": self.config.dtype,
            "device": self.device,
            "hardware": self.hardware,
            "threads": torch.get_num_threads(),
            "level": "model",
            "compiled": False,
        }


_RECIPE = ("max_steps", "learning_rate", "accumulate", "activation_checkpointing")
_LEAST = {"max_steps": 0, "learning_rate": 0.0, "accumulate": 1, "checkpoint_interval_s": 0.0, "log_every": 1}


def overridden_recipe(trainer: Trainer) -> dict[str, Any]:
    """What the trainer config says otherwise than the task's recipe."""
    for key, least in _LEAST.items():
        value = getattr(trainer, key)
        if value is not None and not value >= least:  # not a number is not either
            kind = "a whole number" if isinstance(least, int) else "a number"
            raise UserError(f"trainer.{key}={value} is not allowed: {kind} of at least {least:g}")
    said = {key: getattr(trainer, key) for key in _RECIPE}
    return {key: value for key, value in said.items() if value is not None}


def digest(identity: Mapping[str, Any]) -> str:
    """16 hex digits of a mapping of plain values."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def machine_identity(device: str, devices: int = 1) -> dict[str, Any]:
    """What a result depends on besides config and code."""
    return {
        "device": device,
        "hardware": hardware_id(device, devices),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _of_dropin(run: Run) -> dict[str, Any]:
    """What tells a drop-in run from one that trains from scratch, as options of its task's setting.

    Raises:
        UserError: ``finetune`` without ``dropin``, or not a number of steps.
    """
    if run.finetune.steps < 0:
        raise UserError(f"finetune.steps={run.finetune.steps} is not allowed: a whole number of at least 0")
    if run.dropin is None:
        if run.finetune != Finetune():
            raise UserError("finetune goes on from trained weights: give dropin=softmax too")
        return {}
    steps = {"finetune": run.finetune.steps} if run.finetune.steps else {}
    return {"dropin": run.dropin, **steps}


def _exact_setting(name: str, path: tuple[str, ...]) -> Setting:
    """The setting that ``dropin`` names."""
    try:
        node = config_node("attention", name, path)
    except MissingConfigException as error:
        raise unknown("dropin", name, _exact_mechanisms()) from error
    with blame_user():
        setting = Setting.from_node(name, node)
    if not setting.card.exact:
        raise UserError(
            f"dropin={name} is not allowed: it is not exact attention; allowed: {', '.join(_exact_mechanisms())}"
        )
    return setting


def _exact_mechanisms() -> list[str]:
    return [name for name in names() if mechanism(name).card.exact]


def search_path(runtime: DictConfig) -> tuple[str, ...]:
    """The folders of ``--config-dir``, as ``hydra.runtime`` knows them."""
    return tuple(
        f"{source['schema']}://{source.path}"
        for source in runtime.config_sources
        if source.provider == "hydra.searchpath in command-line"
    )


def _changed(default: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a node that differ from its YAML."""
    interpolated = {key for key, value in default.items() if isinstance(value, str) and value.startswith("${")}
    return {key: value for key, value in node.items() if key not in interpolated and default.get(key) != value}


def with_options(name: str, changed: Mapping[str, Any]) -> str:
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
    choices, path = runtime.choices, search_path(runtime)
    attention_changed = _changed(config_node("attention", choices["attention"], path), attention)
    task_changed = _changed(config_node("task", choices["task"], path), task)
    with blame_user():
        setting = Setting.from_node(with_options(choices["attention"], attention_changed), attention)
        baseline = Setting.from_node(run.baseline, config_node("attention", run.baseline, path))
    device = devices.resolve_device(run.device)
    devices.resolve_dtype(run.dtype, training=True)
    if run.split not in EVALUATED:
        raise unknown("split", run.split, EVALUATED)
    if run.sweep is not None and (run.sweep.strip(" .") == "" or "/" in run.sweep):
        raise UserError(f"sweep={run.sweep!r} is not allowed: a name, which trackers make a folder of")
    count = devices.resolve_devices(run.devices, device)
    devices.resolve_threads(max(1, usable_cores() // count) if run.threads is None and count > 1 else run.threads)
    overridden: dict[str, Any] = {f"task.{key}": value for key, value in task_changed.items()}
    if run.size != run.protocol.size:
        overridden["size"] = run.size
    if run.seed not in run.protocol.seeds:
        overridden["seed"] = run.seed
    overridden |= {f"trainer.{key}": value for key, value in overridden_recipe(run.trainer).items()}
    if run.dropin is not None:
        overridden |= {"dropin": run.dropin, "finetune": asdict(run.finetune)}
    overridden = {key: value for key, value in overridden.items() if key not in run.protocol.free}
    if run.split != "test":
        overridden = {"split": run.split}  # no row of a board, whatever else it says; all trials of a search together
    cell = Cell(
        config=run,
        task_name=choices["task"],
        task_setting=with_options(choices["task"], task_changed | _of_dropin(run)),
        task_target=str(task["_target_"]),
        task_options={key: value for key, value in task.items() if key != "_target_"},
        setting=setting,
        baseline=baseline,
        pattern=resolve_pattern(run.pattern, choices["task"], str(task["_target_"])),
        device=device,
        protocol=protocol.effective_name(run.protocol, overridden),
    )
    if run.dropin is not None:
        exact = _exact_setting(run.dropin, path)
        plain = replace(run, dropin=None, finetune=Finetune())
        named = with_options(choices["task"], task_changed)
        cell = replace(cell, source=replace(cell, config=plain, task_setting=named, setting=exact))
    if count > 1 and (batches := cell.recipe.accumulate) % count:
        raise UserError(
            f"devices={count} cannot share out the {batches} batches of an update evenly: give trainer.accumulate="
            f"{-(-batches // count) * count}, or another multiple of {count}"
        )
    return cell
