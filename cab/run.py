"""One run: a task with an attention in the slots of one pattern; trains, evaluates, records.

The way of a number: the config is resolved to a :class:`Cell`, whose key says whether its records are there already;
:func:`execute` trains and evaluates it and appends one row per value.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_zoo.contract import LengthExceeded, Unsupported
from cab.cells import Cell
from cab.claims import claimed
from cab.device_lock import device_held
from cab.errors import UNWRITABLE, UserError, one_line
from cab.measure.environment import write_manifest
from cab.mirror import Mirror
from cab.records import Record, Status, now
from cab.run_costs import cost_rows
from cab.run_fidelity import fidelity_of
from cab.run_training import OnLog, OverBudget, checkpoint_of, trained, with_exact_attention
from cab.samples import check_names, write_samples
from cab.tracking import NoTracker, Outcome, TrackedRun, Tracker
from cab.train import Diverged
from tasks.contract import Artifact, Scores, Task
from tasks.sources import DataUnavailable
from tasks.whole_file import write_whole

# Whose records are known to be there: each cell of a sweep would read all of them again.
_FLOORS: set[tuple[Path, str]] = set()


def execute(
    cell: Cell,
    *,
    tracker: Tracker | None = None,
    on_log: OnLog = lambda step, loss: None,
    say: Callable[[str], None] = print,
) -> Status:
    """Trains and evaluates a cell and records every value; a failure is recorded with its reason.

    Only one process does so at a time; what another one has done meanwhile is not done again.

    Args:
        cell: what to run.
        tracker: mirrors the curve and the values; what it does costs the run nothing.
        on_log: called with (step, loss) at each logged step.
        say: prints a warning, such as that of a damaged checkpoint.

    Raises:
        KeyboardInterrupt: after a signal, with the checkpoint written.
        UserError, DataUnavailable: nothing was computed, and the user can mend it.
        OSError: the disk is full, say, so that nothing can be recorded; the checkpoint stays.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(
            claimed(cell.store.folder, cell.key, lambda: say(f"{cell.key} is being run by another process; waiting"))
        )
        held.enter_context(
            device_held(cell.device, alone=False, on_wait=lambda: say("another process times on this device; waiting"))
        )
        others = cell.store.final(cell.key)
        if others:
            return Status(others[-1]["status"])
        with Mirror(tracker or NoTracker(), say) as mirror:
            return _execute(cell, mirror, on_log, say)


def _execute(cell: Cell, mirror: Mirror, on_log: OnLog, say: Callable[[str], None]) -> Status:
    store, started, begin = cell.store, now(), time.perf_counter()
    manifest = write_manifest(store.folder, cell.device, cell.resolved())

    def shared() -> dict[str, Any]:
        return {
            **run_columns(cell),
            "started_at": started,
            "duration_s": time.perf_counter() - begin,
            "manifest": manifest,
        }

    def failure(status: Status, reason: str) -> Status:
        record_failure(cell, status, reason, **shared())
        mirror.finish(Outcome(str(status), reason))
        return status

    if cell.unsupported is not None:
        return failure(Status.UNSUPPORTED, cell.unsupported)
    _prepare(cell)
    try:
        rows, arrays, artifacts = _measure(cell, mirror, on_log, say)
        record_floors(cell, manifest)
    except Unsupported as error:
        return failure(Status.UNSUPPORTED, error.reason)
    except OverBudget as error:
        return failure(Status.OVER_BUDGET, one_line(error))
    except Diverged as error:
        return failure(Status.DIVERGED, one_line(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        return failure(Status.OUT_OF_MEMORY, one_line(error))
    except (UserError, DataUnavailable):
        raise
    except LengthExceeded as error:
        raise UserError(f"{cell.task_name} with {cell.setting.name}: {one_line(error)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise  # nothing can be recorded, of this cell or the next
        return failure(Status.ERROR, f"{type(error).__name__}: {one_line(error)} ({_keep_traceback(cell)})")
    store.write_units(cell.key, arrays)
    store.append(*(Record(**{**shared(), **row}, status=Status.OK) for row in rows))
    checkpoint_of(cell).unlink(missing_ok=True)
    samples = write_samples(cell.store.folder, cell.key, artifacts)
    mirror.finish(Outcome(str(Status.OK), rows=rows, samples=samples))
    return Status.OK


def _prepare(cell: Cell) -> None:
    """Data that are missing or damaged are the user's to mend: nothing is computed, and nothing recorded."""
    try:
        cell.task.prepare()
    except DataUnavailable:
        raise
    except ValueError as error:
        raise UserError(f"{cell.task_name}: {one_line(error)}") from error


def run_columns(cell: Cell) -> dict[str, Any]:
    """The columns that name a run in its rows."""
    return {
        **cell.columns(),
        "run_key": cell.key,
        "attention": cell.setting.card.name,
        "setting": cell.setting.name,
        "slots": cell.config.slots,
        "seed": cell.config.seed,
        **({} if cell.split == "test" else {"split": cell.split}),  # also of what its training cost
    }


def record_failure(cell: Cell, status: Status, reason: str, **columns: Any) -> Status:
    """One row, under the task's primary metric, that says why a run has no value."""
    metric = cell.task.card.primary_metric
    described = {
        "metric": metric.name,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "split": cell.split,
        "phase": "evaluate",
    }
    cell.store.append(
        Record(**{**run_columns(cell), "started_at": now(), **described, **columns}, status=status, reason=reason)
    )
    return status


def _measure(
    cell: Cell, mirror: Mirror, on_log: OnLog, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], list[Artifact]]:
    """Trains and evaluates; the rows (without shared columns), the side file's arrays, and sample outputs."""
    task = cell.task
    name = f"{cell.task_setting}-{cell.pattern.short}-{cell.setting.name}-{cell.config.seed}-{cell.key[:6]}"
    mirror.start(TrackedRun(cell.key, name, cell.config.sweep, cell.resolved(), cell.store.folder / "trackers"))

    def log(step: int, loss: float) -> None:
        mirror.log(step, {"loss": loss})
        on_log(step, loss)

    model, progress = trained(cell, log, say)
    model.eval()
    with torch.inference_mode():
        scores = task.evaluate(model, cell.split)
        artifacts = _samples(cell, model, say) if cell.split == "test" else []  # a task shows what it does on test data
    rows = _rows(cell, scores, "evaluate")
    arrays = unit_arrays(scores) | {
        "curve/step": np.array(progress.logged_steps),
        "curve/loss": np.array(progress.logged_losses),
    }
    if cell.source is not None:
        more_rows, more_arrays = _beside_exact_attention(cell, model, say)
        rows, arrays = rows + more_rows, arrays | more_arrays
    rows += cost_rows(cell, model, progress)
    return rows, arrays, artifacts


def _rows(cell: Cell, scores: Scores, phase: str) -> list[dict[str, Any]]:
    return [
        {
            "metric": metric.name,
            "value": metric.value(scores),
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "split": cell.split,
            "phase": phase,
        }
        for metric in cell.task.card.metrics
    ]


def _beside_exact_attention(
    cell: Cell, model: torch.nn.Module, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Of a drop-in run: how near its attention comes to the trained one; after fine-tuning, what the same weights give
    with exact attention again (phase ``evaluate_exact``)."""
    exact = with_exact_attention(cell, model, say)
    if cell.recipe.max_steps == 0:
        return fidelity_of(cell, exact, model)
    exact.eval()
    with torch.inference_mode():
        scores = cell.task.evaluate(exact, cell.split)
    arrays = {f"exact/{name}": array for name, array in unit_arrays(scores).items()}
    return _rows(cell, scores, "evaluate_exact"), arrays


def _samples(cell: Cell, model: torch.nn.Module, say: Callable[[str], None]) -> list[Artifact]:
    """Sample outputs; a fault there costs the run none of its values."""
    try:
        artifacts = cell.task.samples(model)
        check_names(artifacts)
    except Exception as error:  # noqa: BLE001 - whatever a task's samples do, what was measured stands
        say(f"no samples of {cell.task_name}: {type(error).__name__}: {one_line(error)} ({_keep_traceback(cell)})")
        return []
    return artifacts


def unit_arrays(scores: Scores) -> dict[str, np.ndarray]:
    """Scores as the arrays of a side file: ``units``, ``values/<metric>``, ``weights/<metric>``."""
    return {
        "units": np.array(scores.units, dtype=np.str_),
        **{f"values/{name}": array for name, array in scores.values.items()},
        **{f"weights/{name}": array for name, array in scores.weights.items()},
    }


def record_floors(cell: Cell, manifest: str | None) -> None:
    """Records the task's trivial predictors, and its card, once per folder."""
    store = cell.store
    write_task_card(cell.task, cell.task_name, store.folder)
    keys = {name: f"{cell.floor_key}-{name.replace(' ', '_')}" for name in cell.task.card.floors}
    place = (store.folder.absolute(), cell.floor_key)
    if place in _FLOORS:
        return
    with claimed(store.folder, cell.floor_key):
        if not all(store.final(key) for key in keys.values()):
            _record_floors(cell, keys, manifest)
    _FLOORS.add(place)


def _record_floors(cell: Cell, keys: Mapping[str, str], manifest: str | None) -> None:
    store = cell.store
    for name, scores in cell.task.floors(cell.split).items():
        key = keys[name]
        store.write_units(key, unit_arrays(scores))
        rows = [metric for metric in cell.task.card.metrics if metric.name in scores.values]
        store.append(
            *(
                Record(
                    **cell.columns(),
                    run_key=key,
                    setting=f"floor:{name}",
                    metric=metric.name,
                    value=metric.value(scores),
                    unit=metric.unit,
                    higher_is_better=metric.higher_is_better,
                    split=cell.split,
                    phase="evaluate",
                    status=Status.OK,
                    started_at=now(),
                    manifest=manifest,
                )
                for metric in rows
            )
        )


def write_task_card(task: Task, name: str, folder: Path) -> None:
    """``cards/task-<name>.json``: the card, which reports read; overwritten with equal content by every run."""
    path = folder / "cards" / f"task-{name}.json"
    content = json.dumps(asdict(task.card) | {"name": name}, indent=1, sort_keys=True, default=str) + "\n"
    if path.exists() and path.read_text() == content:
        return
    write_whole(path, content.encode())


def _keep_traceback(cell: Cell) -> str:
    """Writes the traceback of the exception in hand beside the records; returns where, relative to the folder."""
    path = cell.store.folder / "logs" / f"{cell.key}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(traceback.format_exc())
    return str(path.relative_to(cell.store.folder))
