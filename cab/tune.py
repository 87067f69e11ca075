"""``cab tune``: a search over options by their value on validation data.

Proposals come from Optuna's TPE sampler (Bergstra, Bardenet, Bengio, Kégl, NeurIPS 2011; tree-structured Parzen
estimators), one after the other and from a fixed seed, so that they are a function of what the trials before them came
to. Each trial is a run with records of its own; they are the only memory of a search. The same command again asks for
the same proposals, finds those that are recorded, and goes on at the first that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import TYPE_CHECKING

from cab.cells import Cell, digest
from cab.commands import cell_of
from cab.compose import Composer
from cab.errors import UserError
from cab.launching import duration
from cab.protocol import require_writable
from cab.records import RETRIED, Status
from cab.say import say
from cab.schema import Run, Tune
from cab.search_space import Space, space_of
from cab.searches import Outcome, Trial
from cab.sweep import ended
from cab.tracking import make_tracker
from tasks.contract import Metric

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial as Proposal

# Of a proposal that was made before, in a row: the sampler is sure of its best, and will hardly leave it.
MOST_REPEATS = 100
# Of `tune` and not of `run`, and those that a search sets itself.
OWN = {field.name for field in fields(Tune)} - {field.name for field in fields(Run)} | {"dry_run", "split"}


@dataclass(frozen=True)
class Asked:
    """The command line, taken apart: what is fixed, and the space."""

    fixed: tuple[str, ...]
    space: Space


def take_apart(composer: Composer, overrides: Sequence[str]) -> Asked:
    """Raises :class:`UserError` for a key that is given twice, or a space that is none."""
    parsed = composer.parse(overrides)
    for override in parsed:
        if override.key_or_group.replace(".", "/").startswith(("hydra/launcher", "hydra/sweeper")):
            raise UserError(
                f"{override.input_line}: each trial follows from the values before it, so they run here, one after the "
                "other; several searches may run at once"
            )
    swept = [override for override in parsed if override.is_sweep_override()]
    fixed = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
    keys = [override.key_or_group for override in parsed]
    for override in swept:
        if keys.count(override.key_or_group) > 1:
            raise UserError(f"{override.key_or_group} is given twice")
    return Asked(tuple(fixed), space_of(swept, lambda words: composer.compose("tune", [*fixed, *words])))


class Search:
    """Args:
    composer: the open Hydra context.
    overrides: of the command line.
    say: prints a line about how it goes.
    """

    def __init__(
        self,
        composer: Composer,
        overrides: Sequence[str],
        say: Callable[[str], None] = say,
    ) -> None:
        self._composer = composer
        self._say = say
        asked = take_apart(composer, overrides)
        self.fixed, self.space = asked.fixed, asked.space
        if not self.space.dimensions:
            raise UserError(
                "nothing to search: give an option several values, such as "
                "'trainer.learning_rate=tag(log,interval(1e-4,1e-2))' or 'attention.num_features=choice(64,128)'"
            )
        self.optuna = _optuna()
        # All before any is trained: what is wrong with a value is told at once.
        self.first, *others = [self._cell(words) for words in self.space.probes()]
        for cell in others:
            _require_same(self.first, cell)
        assert isinstance(self.first.config, Tune)
        self.config = self.first.config
        self._check(self.config)
        make_tracker(self.config.tracker)  # refuses now what it would in every trial

    @staticmethod
    def _check(config: Tune) -> None:
        if config.split != "validation":
            raise UserError(f"split={config.split}: a search chooses by validation data; cab run scores on test data")
        if config.trials < 1:
            raise UserError(f"trials={config.trials} is not allowed: at least 1")
        if not 0 <= config.sampler_seed < 2**32:
            raise UserError(f"sampler_seed={config.sampler_seed} is not allowed: 0 to {2**32 - 1}")

    @property
    def metric(self) -> Metric:
        """What is optimised: the task's primary metric."""
        return self.first.task.card.primary_metric

    def _cell(self, words: Sequence[str]) -> Cell:
        """A trial, resolved; its manifest will say of which search it is."""
        cell = cell_of(self._composer, "tune", [*self.fixed, *words])
        assert isinstance(cell.config, Tune)
        if cell.config.space:
            raise UserError("space is made from the options that get several values; it cannot be given")
        return replace(cell, config=replace(cell.config, space=self.space.texts()))

    def run(self) -> Outcome:
        """Runs what is not recorded yet; with ``dry_run`` nothing."""
        require_writable(self.first.store.folder)
        if not self.config.dry_run:
            self.first.task.prepare()  # what is missing is the user's to mend, and no trial's fault
        direction = "maximize" if self.metric.higher_is_better else "minimize"
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        sampler = self.optuna.samplers.TPESampler(seed=self.config.sampler_seed)
        study = self.optuna.create_study(sampler=sampler, direction=direction)
        trials = self._search(study)
        return self._outcome(trials)

    def _search(self, study: Study) -> list[Trial]:
        trials: dict[tuple[str, ...], Trial] = {}
        wanted = min(self.config.trials, self.space.size)
        repeats, spent, ran = 0, 0.0, 0
        while len(trials) < wanted and repeats < MOST_REPEATS:
            proposal = study.ask(self.space.distributions())
            words = self.space.overrides(proposal.params)
            if words in trials:
                repeats += 1
                tell(study, proposal, trials[words].status, trials[words].value)
                continue
            repeats, begin, cell = 0, time.monotonic(), self._cell(words)
            recorded = bool(cell.store.final(cell.key))
            if not recorded and self.config.dry_run:
                break
            if not recorded:
                ended(cell, say=self._say)
            trials[words] = trial = Trial.recorded(words, cell, self.metric)
            _require_same_units([each for each in trials.values() if each.value is not None])
            tell(study, proposal, trial.status, trial.value)
            took = time.monotonic() - begin
            spent, ran = (spent, ran) if recorded else (spent + took, ran + 1)
            left = f"; about {duration(spent / ran * (wanted - len(trials)))} left" if ran else ""
            how = "recorded" if recorded else f"{took:.1f} s{left}"
            best = Trial.best(trials.values(), self.metric)
            so_far = f"; best so far {best.value:.6g}" if best is not None else ""
            self._say(f"[{len(trials)}/{wanted:.0f}] {' '.join(words)}: {trial.said(self.metric)} ({how}{so_far})")
        return list(trials.values())

    def _outcome(self, trials: Sequence[Trial]) -> Outcome:
        best = Trial.best(trials, self.metric)
        fixed = [word for word in self.fixed if word.lstrip("+").partition("=")[0] not in OWN]
        options = [*fixed, *best.words] if best is not None else fixed
        folder = self._composer.config_dir
        return Outcome(
            name=digest(
                {
                    "space": self.space.texts(),
                    "trials": self.config.trials,
                    "sampler_seed": self.config.sampler_seed,
                    "optuna": self.optuna.__version__,
                    "of": self.first.key,
                }
            ),
            first=self.first,
            config=self.config,
            sampler=f"optuna {self.optuna.__version__} TPESampler",
            metric=self.metric,
            trials=tuple(trials),
            wanted=int(min(self.config.trials, self.space.size)),
            fixed=tuple(fixed),
            command=("cab", "run", *(["--config-dir", str(folder)] if folder is not None else []), *options),
            chosen=cell_of(self._composer, "run", options) if best is not None else None,
        )


def tell(study: Study, proposal: Proposal, status: Status, value: float | None) -> None:
    """What the sampler learns of a trial.

    A setting that has no value for a reason of its own is *pruned*: TPE counts it among the worst, without a number
    having to be made up. An error says nothing about the setting, and a repeat may mend it: *failed*, which TPE leaves
    out.
    """
    from optuna.trial import TrialState

    if status is Status.OK:
        study.tell(proposal, value)
    else:
        study.tell(proposal, state=TrialState.FAIL if status in RETRIED else TrialState.PRUNED)


def _require_same(first: Cell, other: Cell) -> None:
    """What is scored on other data, or at another length, cannot be told better or worse."""
    for column in ("data", "size", "length_q", "length_kv"):
        one, another = first.columns()[column], other.columns()[column]
        if one != another:
            raise UserError(
                f"{other.task_setting} has {column}={another}, and {first.task_setting} {one}: their values do not "
                "compare; search what leaves the data as they are"
            )


def _require_same_units(scored: Sequence[Trial]) -> None:
    """The last of some trials has to be scored on the validation examples of the first."""
    if len(scored) < 2:
        return
    first, last = (trial.cell.store.read_units(trial.cell.key).get("units") for trial in (scored[0], scored[-1]))
    if first is not None and last is not None and first.tolist() != last.tolist():
        raise UserError(
            f"{' '.join(scored[-1].words)} is scored on other validation examples than {' '.join(scored[0].words)}: "
            "their values do not compare; search what leaves the data as they are"
        )


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise UserError("cab tune needs Optuna, which is not installed: pip install 'cab-attention[tune]'") from error
    return optuna


def tune(composer: Composer, overrides: Sequence[str]) -> bool:
    """The verb; whether it found a setting, and no trial ended in an error that a repeat could mend."""
    search = Search(composer, overrides)
    outcome = search.run()
    if search.config.dry_run:
        print(outcome.plan())
        return True
    print(outcome)
    outcome.write()
    return outcome.best is not None and not any(trial.status in RETRIED for trial in outcome.trials)
