"""The verbs, behind the front end: compose the config, then call the verb's own function with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from cab import schema
from cab.cli import EXIT_FAILED, Arguments
from cab.compose import Composer
from cab.errors import UserError, one_line
from cab.mistakes import check_sweeps

if TYPE_CHECKING:
    from cab.cells import Cell
    from cab.sweep import Refusal, SweepSummary


# What a protocol says of costs, and the lists of which any part belongs to it.
EFFICIENCY_OWNED = ("protocol", "measure", "lengths_key", "impl")
EFFICIENCY_PARTS = ("lengths", "baselines")


def dispatch(arguments: Arguments) -> int:
    """Runs a verb; returns its exit status."""
    from tasks.sources import DataUnavailable

    with Composer(arguments.config_dir) as composer:
        if arguments.show is not None:
            return show_config(composer, arguments)
        try:
            return COMMANDS[arguments.verb](composer, arguments)
        except DataUnavailable as error:
            raise UserError(one_line(error)) from error


def show_config(composer: Composer, arguments: Arguments) -> int:
    """``--cfg``: the composed config as YAML."""
    config = SHOWN.get(arguments.verb, _composed)(composer, arguments)
    with open_dict(config):
        hydra = config.pop("hydra")
    shown = {"job": config, "hydra": hydra, "all": OmegaConf.merge({"hydra": hydra}, config)}[arguments.show or "job"]
    with composer.one_line_errors(arguments.verb):
        print(OmegaConf.to_yaml(shown, resolve=arguments.resolve), end="")
    return 0


def _composed(composer: Composer, arguments: Arguments) -> DictConfig:
    return composer.compose(arguments.verb, arguments.overrides, with_hydra=True)


def _composed_search(composer: Composer, arguments: Arguments) -> DictConfig:
    """What is fixed, with the space as the verb will fill it in."""
    from cab.tune import take_apart

    asked = take_apart(composer, arguments.overrides)
    config = composer.compose(arguments.verb, asked.fixed, with_hydra=True)
    config.space = asked.space.texts()
    return config


def cell_of(composer: Composer, verb: str, overrides: Sequence[str]) -> Cell:
    """One run, resolved from overrides of ``run`` or of a verb that takes the same."""
    from cab.cells import resolve

    config = composer.compose(verb, overrides, with_hydra=True)
    with open_dict(config):
        runtime = config.pop("hydra").runtime
    with composer.one_line_errors(verb):
        return resolve(config, runtime)


def typed(composer: Composer, arguments: Arguments) -> Any:
    """The verb's config as its dataclass."""
    config = composer.compose(arguments.verb, arguments.overrides)
    with composer.one_line_errors(arguments.verb):
        return OmegaConf.to_object(config)


def run(composer: Composer, arguments: Arguments) -> int:
    """One run, or with ``-m`` a sweep. A sweep fails (1) where a run ended in an error."""
    from cab.progress import RunNarrator
    from cab.records import RETRIED, Status

    check_sweeps(composer.parse(arguments.overrides))
    if arguments.multirun:
        summary = sweep(composer, [list(arguments.overrides)])
        print(summary)
        return EXIT_FAILED if any(status in summary.ended for status in RETRIED) else 0
    status = RunNarrator(cell_of(composer, "run", arguments.overrides)).run()
    return 0 if status is Status.OK else EXIT_FAILED


def tune(composer: Composer, arguments: Arguments) -> int:
    """A search; fails (1) where it finds nothing, or a trial ended in an error."""
    from cab.tune import tune as run_tune

    return 0 if run_tune(composer, arguments.overrides) else EXIT_FAILED


def sweep(
    composer: Composer,
    grids: list[list[str]],
    *,
    on_cell: Callable[[], None] = lambda: None,
    refuse: Callable[[Cell], Refusal | None] = lambda cell: None,
) -> SweepSummary:
    """Runs the union of grids of ``run`` overrides through the planning sweeper and the configured launcher."""
    from cab.sweep import PlanningSweeper, launched

    shared = composer.parse(sorted(set.intersection(*(set(grid) for grid in grids))))
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    with composer.one_line_errors("run"):
        # What is swept enters cell by cell; the master config needs what all cells share (launcher, results ...).
        config: DictConfig = hydra.compose_config(
            config_name="run",
            overrides=[
                *composer.search_path_override,
                *(override.input_line or "" for override in shared if not override.is_sweep_override()),
            ],
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
        )
    cells = [[line for line in grid if not line.lstrip("+").startswith(("hydra.", "hydra/"))] for grid in grids]
    sweeper = PlanningSweeper(composer, on_cell=on_cell, refuse=refuse, dry_run=bool(config.dry_run))
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
    sweeper.setup(hydra_context=context, task_function=launched, config=config)
    return sweeper.sweep_grids(cells)


def efficiency(composer: Composer, arguments: Arguments) -> int:
    """The cost grid and its report; fails (1) where a cell ended in an error."""
    from cab.costs import folder_of, measure_costs
    from cab.protocol import recorded_name
    from cab.report.crossings import fit_named
    from cab.report.make import make_report
    from cab.report.terminal import print_costs

    config: schema.Efficiency = typed(composer, arguments)
    given = arguments.overrides
    name = recorded_name(composer, "efficiency", config, given, owned=EFFICIENCY_OWNED, parts=EFFICIENCY_PARTS)
    config = replace(config, protocol=replace(config.protocol, name=name))
    summary = measure_costs(composer, config)
    if not config.dry_run:
        made = make_report(folder_of(config), fit=fit_named(config.fit))
        print_costs(made)
    print(summary)
    return EXIT_FAILED if summary.errors else 0


def check(composer: Composer, arguments: Arguments) -> int:
    """Certificates; fails (1) where a claimed pattern has none."""
    from cab.check import check as run_check

    config: schema.Check = typed(composer, arguments)
    return 0 if run_check(config, composer.settings(config.attentions)) else EXIT_FAILED


def report(composer: Composer, arguments: Arguments) -> int:
    """Pages from records, or from the numbers of papers."""
    from cab.errors import blame_user, unknown
    from cab.report import imported, make

    config: schema.Report = typed(composer, arguments)
    sources: dict[str, Callable[[schema.Report], object]] = {"records": make.report, "published": imported.report}
    if config.source not in sources:
        raise unknown("source", config.source, sources)
    with blame_user():
        sources[config.source](config)
    return 0


def leaderboard(composer: Composer, arguments: Arguments) -> int:
    """Everything that a protocol names."""
    from cab.leaderboard import Leaderboard

    return Leaderboard(composer, composer.compose("leaderboard", arguments.overrides), arguments.overrides).run()


def dropin(composer: Composer, arguments: Arguments) -> int:
    """A drop-in study."""
    from cab.dropin import Study

    return Study(composer, composer.compose("dropin", arguments.overrides), arguments.overrides).run()


def listing(composer: Composer, arguments: Arguments) -> int:
    """Settings and tasks."""
    from cab.listing import print_listing

    print_listing(composer, typed(composer, arguments))
    return 0


def doctor(composer: Composer, arguments: Arguments) -> int:
    """What this machine can do."""
    from cab.doctor import examine

    return 0 if examine(composer, typed(composer, arguments)) else EXIT_FAILED


def submit(composer: Composer, arguments: Arguments) -> int:
    """Packs of records: made, put beside own ones, verified."""
    from cab.errors import blame_user
    from cab.report.book import BASELINE
    from cab.submission import submit as run_submit

    with blame_user():
        run_submit(typed(composer, arguments), BASELINE)
    return 0


SHOWN: dict[str, Callable[[Composer, Arguments], DictConfig]] = {"tune": _composed_search}
COMMANDS: dict[str, Callable[[Composer, Arguments], int]] = {
    "run": run,
    "tune": tune,
    "leaderboard": leaderboard,
    "dropin": dropin,
    "efficiency": efficiency,
    "check": check,
    "report": report,
    "list": listing,
    "doctor": doctor,
    "submit": submit,
}
