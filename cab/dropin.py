"""``cab dropin``: the study of an experiment, run where it is missing, and its page.

Each task is trained with exact attention once. Then every setting takes the place of it, as it is and after some steps
of fine-tuning. The cost of each setting is measured at the task's length and heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attention_zoo.contract import Attention, Pattern
from cab import device as devices
from cab import protocol, schema
from cab.cells import Cell, with_options
from cab.certificates import certificate, run_refusal
from cab.commands import cell_of, sweep
from cab.compose import Composer, matching
from cab.costs import certificate_gate
from cab.efficiency import efficiency
from cab.errors import UserError
from cab.ladder import Rung, rungs
from cab.measure.environment import hardware_id
from cab.records import RETRIED, RecordStore
from cab.report.make import make_report
from cab.report.study import PLAN, StudyCell
from cab.run_training import build_model
from cab.say import say
from cab.settings import Setting
from cab.sweep import Refusal
from tasks.whole_file import write_whole

_FREE = ("dropin", "finetune", "task")  # and the options of the study's tasks


@dataclass(frozen=True)
class Prepared:
    """A task of the study: its source run, the shape of its attention, and the settings that take its place."""

    task: schema.StudyTask
    source: Cell
    heads: int
    head_dim: int
    rungs: Mapping[Rung, Setting]

    @property
    def length(self) -> int:
        return self.source.task.lengths[0]


class Study:
    """Args:
    composer: the open Hydra context.
    config: the composed ``dropin`` config.
    overrides: the command line's, to pass on what concerns single runs.
    """

    def __init__(self, composer: Composer, config: DictConfig, overrides: Sequence[str]) -> None:
        with composer.one_line_errors("dropin"):
            typed = OmegaConf.to_object(config)
        assert isinstance(typed, schema.Dropin)
        _check(typed)
        self.composer, self.config = composer, typed
        self.experiment = self._named(overrides)
        self.device = devices.resolve_device(typed.device)
        self.threads = devices.resolve_threads(typed.threads)
        self.given = [word for word in overrides if word.startswith(("trainer", "tracker", "hydra.", "hydra/"))]
        asked = matching("task", typed.tasks, list(dict.fromkeys(task.task for task in self.experiment.tasks)))
        self.tasks = [task for task in self.experiment.tasks if task.task in asked]
        known = [*self.experiment.plain, *self.experiment.ladders]
        self.attentions = matching("attention", typed.attentions, known)

    def _named(self, overrides: Sequence[str]) -> schema.Experiment:
        """The experiment; under another name where it, or how costs are measured, is not as its config says."""
        owned = ("experiment", "measure")
        changed = protocol.changed(self.composer, "dropin", self.config, overrides, "experiment", owned)
        given = self.config.experiment
        base = schema.Protocol(name=given.name, version=given.version)
        return replace(given, name=protocol.effective_name(base, changed))

    @cached_property
    def protocol(self) -> str:
        """The experiment's name, or ``name+hash`` where a run says otherwise than it."""
        return self._cell(self.tasks[0]).protocol

    @cached_property
    def store(self) -> RecordStore:
        return RecordStore(protocol.folder(self.config.results, self.protocol, hardware_id(self.device)))

    def run(self) -> int:
        """Returns 0, or 1 where a cell ended in an error that a repeat could mend."""
        protocol.require_writable(self.store.folder)
        prepared = [self._prepare(task) for task in self.tasks]
        if not self.config.dry_run:
            self._write_plan(prepared)
            self._certify(prepared)
        grids = [grid for each in prepared for grid in self._grids(each)]
        ended = sweep(self.composer, grids, refuse=self._refuse)
        say(str(ended))
        if self.config.dry_run:
            return 0
        errors = sum(self._measure(each) for each in prepared) if self.config.costs else 0
        make_report(self.store.folder)
        print(f"{self.store.folder / 'dropin.html'}\n{self.store.folder / 'dropin.md'}")
        return 1 if errors or any(status in ended.ended for status in RETRIED) else 0

    def _prepare(self, task: schema.StudyTask) -> Prepared:
        source = self._cell(task).source
        assert source is not None
        source.task.prepare()
        layer = next(part for part in build_model(source).modules() if isinstance(part, Attention))
        found = rungs(self.experiment, source.pattern, source.task.lengths[0], self.config.budgets)
        chosen = {rung: self._setting(rung) for rung in found if rung.attention in self.attentions}
        return Prepared(task, source, layer.num_heads, layer.head_dim, chosen)

    def _cell(self, task: schema.StudyTask) -> Cell:
        """The run of a task with the exact setting in its own place."""
        exact = self.experiment.dropin
        words = [word for word in self.given if not word.startswith("hydra")]
        given = [*self._common(task), f"attention={exact}", f"dropin={exact}", f"seed={self.config.seeds[0]}", *words]
        return cell_of(self.composer, "run", given)

    def _common(self, task: schema.StudyTask) -> list[str]:
        """Overrides that the runs of a task share."""
        experiment, config = self.experiment, self.config
        free = [*_FREE, *(f"task.{key}" for each in experiment.tasks for key in each.options)]
        return [
            f"task={task.task}",
            *(f"task.{key}={value}" for key, value in task.options.items()),
            f"protocol.name='{experiment.name}'",
            f"protocol.version={experiment.version}",
            f"protocol.size={experiment.size}",
            f"protocol.seeds=[{','.join(map(str, experiment.seeds))}]",
            f"protocol.free=[{','.join(dict.fromkeys(free))}]",
            f"results='{config.results}'",
            f"device={self.device}",
            f"dtype={config.dtype}",
            *([f"threads={config.threads}"] if config.threads is not None else []),
        ]

    def _grids(self, prepared: Prepared) -> list[list[str]]:
        steps = prepared.task.finetune_steps
        if self.config.finetune is not None:
            steps = self.config.finetune
        return [
            [
                *self._common(prepared.task),
                *rung.overrides,
                f"seed={','.join(map(str, self.config.seeds))}",
                f"dropin={self.experiment.dropin}",
                f"finetune.steps={','.join(map(str, steps))}",
                f"dry_run={self.config.dry_run}",
                *self.given,
            ]
            for rung in prepared.rungs
        ]

    def _setting(self, rung: Rung) -> Setting:
        """As a run of the rung names it."""
        node = self.composer.node("attention", rung.attention)
        changed = {key: value for key, value in rung.options.items() if node.get(key) != value}
        return Setting.from_node(with_options(rung.attention, changed), {**node, **rung.options})

    def _certify(self, prepared: Sequence[Prepared]) -> None:
        names = list(dict.fromkeys(rung.attention for each in prepared for rung in each.rungs))
        for number, setting in enumerate(self.composer.settings(names), start=1):
            certificate(setting, self.store.folder)
            say(f"[{number}/{len(names)}] certificate of {setting.name}")

    def _refuse(self, cell: Cell) -> Refusal | None:
        """The certificate is that of the mechanism's setting as its YAML says, for all of its rungs."""
        return run_refusal(self._certified(cell.setting), cell.pattern, self.store.folder)

    def _certified(self, setting: Setting) -> Setting:
        (base,) = self.composer.settings([setting.name.partition("[")[0]])
        return base

    def _measure(self, prepared: Prepared) -> int:
        """Costs of the task's settings; returns how many ended in an error."""
        config, length = self.config, prepared.length
        baselines = {name: self.composer.settings([name])[0] for name in schema.Efficiency().baselines}
        held = certificate_gate(self.store.folder)

        def base_gate(setting: Setting, pattern: Pattern) -> str | None:
            return held(self._certified(setting), pattern)

        grid = schema.Efficiency(
            results=config.results,
            device=self.device,
            dtype=config.dtype,
            threads=self.threads,
            patterns=[str(prepared.source.pattern)],
            lengths=[length],
            baselines=list(baselines),
            protocol=schema.Protocol(name=self.protocol, version=self.experiment.version),
            measure=replace(config.measure, heads=prepared.heads, head_dim=prepared.head_dim),
        )
        summary = efficiency(grid, list(prepared.rungs.values()), self.store, baselines=baselines, gate=base_gate)
        say(f"costs of {prepared.source.task_setting}: {summary}")
        return summary.errors

    def _write_plan(self, prepared: Sequence[Prepared]) -> None:
        """``study.json``: which setting is which rung; what is there of other tasks and attentions stays."""
        path = self.store.folder / PLAN
        before: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        cells = {json.dumps(entry, sort_keys=True): entry for entry in before}
        for each in prepared:
            for rung, setting in each.rungs.items():
                cell = StudyCell(
                    task=each.source.task_name,
                    source=each.source.task_setting,
                    pattern=str(each.source.pattern),
                    length=each.length,
                    heads=each.heads,
                    head_dim=each.head_dim,
                    attention=rung.attention,
                    setting=setting.name,
                    budget=rung.budget,
                )
                cells.setdefault(json.dumps(vars(cell), sort_keys=True), dict(vars(cell)))
        write_whole(path, (json.dumps(list(cells.values()), indent=0) + "\n").encode())


def _check(config: schema.Dropin) -> None:
    """What a config's types do not say."""
    for budget in config.budgets:
        if not 0 < budget <= 1:
            raise UserError(f"budgets={budget} is not allowed: a share of dense attention's weights, in (0, 1]")
    for steps in config.finetune or []:
        if steps < 0:
            raise UserError(f"finetune={steps} is not allowed: numbers of steps of at least 0")
    for name, given in (("budgets", config.budgets), ("seeds", config.seeds), ("finetune", config.finetune)):
        if given == []:
            raise UserError(f"{name}=[] leaves nothing to run")
