"""``cab leaderboard``: what a protocol names and is not measured yet, and its page, rebuilt as results come in.

Order: data, certificates, costs, task runs. Each part plans from the records, so the same command again does only
what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attention_zoo.contract import Pattern
from cab import device as devices
from cab import protocol, schema
from cab.cells import Cell, overridden_recipe
from cab.certificates import certificate, gate, run_refusal
from cab.commands import sweep
from cab.compose import Composer
from cab.costs import measure_costs, patterns
from cab.errors import unknown
from cab.measure.environment import hardware_id
from cab.records import RETRIED, RecordStore
from cab.report.crossings import fit_named
from cab.report.make import SUMMARY, make_report
from cab.say import say
from cab.sweep import Refusal
from cab.task_settings import make_task, task_card
from cab.tracking import make_tracker
from tasks.contract import TaskCard
from tasks.whole_file import write_whole

# Keys of a run that the protocol owns beside those it lists itself.
OWNED = ("lengths", "seeds", "baseline", "baselines", "protocol", "measure", "trainer")


class Leaderboard:
    """One protocol on this machine.

    Args:
        composer: the open Hydra context.
        config: the composed ``leaderboard`` config.
        overrides: the command line's, to pass on what concerns single runs.
    """

    REBUILD_S = 20.0

    def __init__(self, composer: Composer, config: DictConfig, overrides: Sequence[str]) -> None:
        self.composer = composer
        with composer.one_line_errors("leaderboard"):
            typed = OmegaConf.to_object(config)
        assert isinstance(typed, schema.Leaderboard)
        self.config = typed
        self.overrides = overrides
        self.device = devices.resolve_device(typed.device)
        devices.resolve_dtype(typed.dtype, training=True)
        self.threads = devices.resolve_threads(typed.threads)
        self.fit = fit_named(typed.protocol.fit)
        self.settings = composer.settings(typed.attentions)
        self.tasks = composer.select("task", typed.tasks) if typed.tasks else []
        self.patterns = patterns(typed.patterns)
        self.store = RecordStore(protocol.folder(typed.results, self.protocol, hardware_id(self.device)))
        self.rebuilt = 0.0

    @cached_property
    def protocol(self) -> str:
        """The protocol's name, or ``name+hash`` where a key that it owns was overridden."""
        return protocol.recorded_name(self.composer, "leaderboard", self.config, self.overrides, owned=OWNED)

    @cached_property
    def cards(self) -> dict[str, TaskCard]:
        """The card of each task on the board."""
        return {name: task_card(name, str(self.composer.node("task", name)["_target_"])) for name in self.tasks}

    def run(self) -> int:
        """Returns 0, or 1 where a cell ended in an error that a repeat could mend."""
        protocol.require_writable(self.store.folder)
        overridden_recipe(self.config.trainer)  # what runs would refuse is refused before costs are measured
        make_tracker(self.config.tracker)
        grids = self._grids()
        if self.config.dry_run:
            say(f"protocol {self.protocol} into {self.store.folder}")
            for setting in self.settings:
                say(f"  certificate and costs of {setting.name} at lengths {self.config.lengths}")
            if grids:
                sweep(self.composer, grids, refuse=self._refuse)
            return 0
        self._write_plan()
        before = self._fingerprint()
        self._prepare_data()
        self._certify()
        if self._fingerprint() != before:
            self._rebuild()
        costs = measure_costs(self.composer, self._efficiency(), on_cell=self._rebuild_now_and_then)
        ended = sweep(self.composer, grids, on_cell=self._rebuild_now_and_then, refuse=self._refuse) if grids else None
        if ended is not None:
            say(str(ended))
        if self._fingerprint() != before or not (self.store.folder / SUMMARY).exists():
            make_report(self.store.folder, fit=self.fit)
        self._tell()
        failed = costs.errors or (ended is not None and any(status in ended.ended for status in RETRIED))
        return 1 if failed else 0

    def _prepare_data(self) -> None:
        for name in self.tasks:
            node = self.composer.node("task", name)
            # What preparing needs does not depend on the pattern; the primary one is always there.
            options = self._options(node) | {"pattern": self.cards[name].primary_pattern}
            make_task(name, str(node["_target_"]), options).prepare()

    def _options(self, node: dict[str, Any]) -> dict[str, Any]:
        """A task's options with the size of the protocol filled in."""
        root = OmegaConf.create({"size": self.config.protocol.size, "task": node})
        resolved = OmegaConf.to_container(root, resolve=True)
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved["task"].items() if key != "_target_"}

    def _certify(self) -> None:
        begin = time.monotonic()
        for number, setting in enumerate(self.settings, start=1):
            tick = time.monotonic()
            made = certificate(setting, self.store.folder)
            failed = [str(pattern) for pattern in setting.card.supports if not gate(made, pattern)[0]]
            verdict = f"fails in {', '.join(failed)}" if failed else "holds"
            say(f"[{number}/{len(self.settings)}] certificate of {setting.name} {verdict} ({_since(tick)})")
        say(f"certificates: {_since(begin)}")

    def _efficiency(self) -> schema.Efficiency:
        config = self.config
        return schema.Efficiency(
            results=config.results,
            device=config.device,
            dtype=config.dtype,
            threads=config.threads,
            attentions=config.attentions,
            patterns=config.patterns,
            lengths=config.lengths,
            baselines=config.baselines,
            protocol=replace(config.protocol, name=self.protocol),
            fit=self.fit,
            measure=config.measure,
        )

    def _grids(self) -> list[list[str]]:
        """Overrides of ``run``, a grid per task: the patterns that it scores, every attention and seed."""
        config = self.config
        given = [word for word in self.overrides if word.startswith(("trainer", "tracker", "hydra.", "hydra/"))]
        choice = next((word for word in self.overrides if word.startswith("protocol=")), "protocol=quick")
        grids = []
        for name in self.tasks:
            scored = [str(pattern) for pattern in self._scored(name)]
            if not scored:
                continue
            grids.append(
                [
                    f"task={name}",
                    f"pattern={','.join(scored)}",
                    f"seed={','.join(map(str, config.seeds))}",
                    f"attention={','.join(setting.name for setting in self.settings)}",
                    choice,
                    f"protocol.name='{self.protocol}'",
                    f"protocol.size={config.protocol.size}",
                    f"results='{config.results}'",
                    f"device={self.device}",
                    f"dtype={config.dtype}",
                    f"threads={self.threads}",
                    f"baseline={config.baseline}",
                    f"dry_run={config.dry_run}",
                    *given,
                ]
            )
        return grids

    def _scored(self, task: str) -> list[Pattern]:
        """The patterns in which a task is run: of its card, of the protocol, and asked for.

        Raises:
            UserError: the protocol names a pattern that the task does not score.
        """
        card, named = self.cards[task], self.config.protocol.scored_patterns
        allowed = [str(pattern) for pattern in card.patterns]
        for name in named.get(task, ()):
            if name not in allowed:
                raise unknown(f"protocol.scored_patterns.{task}", name, allowed)
        chosen = named.get(task, allowed)
        return [pattern for pattern in card.patterns if str(pattern) in chosen and pattern in self.patterns]

    def _refuse(self, cell: Cell) -> Refusal | None:
        """A run whose number could not enter the board is not run; the record says why."""
        return run_refusal(cell.setting, cell.pattern, self.store.folder)

    def _write_plan(self) -> None:
        """``plan.json``: what the page shows as pending while no record is there."""
        plan: list[dict[str, Any]] = []
        for setting in self.settings:
            for pattern in self.patterns:
                plan += [
                    {"setting": setting.name, "pattern": str(pattern), "length_q": length}
                    for length in self.config.lengths
                ]
                plan += [
                    {"setting": setting.name, "pattern": str(pattern), "task": name}
                    for name in self.tasks
                    if pattern in self._scored(name)
                ]
        write_whole(self.store.folder / "plan.json", (json.dumps(plan, indent=0) + "\n").encode())

    def _fingerprint(self) -> list[tuple[str, int]]:
        """Names and sizes of the files that a report reads."""
        folders = ("records", "certificates", "cards")
        files = [path for folder in folders for path in (self.store.folder / folder).glob("*")]
        return sorted((str(path), path.stat().st_size) for path in files)

    def _rebuild_now_and_then(self) -> None:
        if time.monotonic() - self.rebuilt > self.REBUILD_S:
            self._rebuild()

    def _rebuild(self) -> None:
        if not any(self.store.records_folder.glob("*.jsonl")):
            return
        tick = time.monotonic()
        make_report(self.store.folder, figures=False, fit=self.fit)
        # A rebuild that takes long comes less often: at most a tenth of the time goes into the page.
        self.rebuilt = time.monotonic() + 9 * (time.monotonic() - tick)

    def _tell(self) -> None:
        print((self.store.folder / SUMMARY).read_text())
        print(f"leaderboard: {self.store.folder / 'leaderboard.md'}\npage:        {self.store.folder / 'index.html'}")


def _since(tick: float) -> str:
    return f"{time.monotonic() - tick:.1f} s"
