"""Weights & Biases as a tracker: a run there per run here, under its key, grouped by sweep."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from cab.errors import UserError, one_line, unknown
from cab.tracking import COLUMNS, INTERRUPTED, Outcome, TrackedRun

_EXIT_CODES = {"ok": 0, INTERRUPTED: 130}


class WandbTracker:
    """``mode=offline`` needs no account and no network: ``wandb sync`` uploads later.

    Args:
        project: of W&B.
        mode: ``offline``, ``online`` or ``disabled``.
        timeout_s: the most that a server which does not answer may cost a run at its start, and again at its end.

    Raises:
        UserError: online without an API key, or an option that is none.
    """

    def __init__(
        self,
        project: str = "cab",
        mode: Literal["offline", "online", "disabled"] = "offline",
        timeout_s: float = 5.0,
    ) -> None:
        if mode not in ("offline", "online", "disabled"):
            raise unknown("tracker.mode", mode, ("offline", "online", "disabled"))
        if not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
            raise UserError(f"tracker.timeout_s={timeout_s} is not allowed: a number of seconds above 0")
        self.project = project
        self.mode = mode
        self.timeout_s = timeout_s
        self._run: Any = None
        # Before wandb is imported: it would write between our lines, and report its own faults to its makers.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if mode == "online":
            _require_key()

    def start(self, run: TrackedRun) -> None:
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        self._told = _LastStep(run.folder / "wandb" / f"{run.key}.step") if self.mode == "offline" else None
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,
            id=run.key,
            resume="allow",
            group=run.group,
            name=run.name,
            config=dict(run.config),
            dir=str(run.folder),
            settings=wandb.Settings(**_limits(self.timeout_s), **_QUIET),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._told is not None:
            if step <= self._told.step:
                return
            self._told.step = step
        elif step < self._run.step:
            return  # W&B has it from before the run was cut
        self._run.log(dict(values), step=step)

    def finish(self, outcome: Outcome) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        if outcome.status == INTERRUPTED:
            run.settings.finish_timeout = 1.0  # whoever presses Ctrl-C waits for no server
        try:
            run.summary.update({**outcome.values, "status": outcome.status, "reason": outcome.reason})
            told = {f"samples/{path.name}": shown for path, kind in outcome.samples if (shown := _shown(path, kind))}
            if outcome.rows:
                told["rows"] = _table(outcome)
            if told:
                run.log(told)
        finally:
            run.finish(exit_code=_EXIT_CODES.get(outcome.status, 1))


class _LastStep:
    """The last step told, in a file: W&B cannot ask its server offline, and would show steps of a cut run twice."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def step(self) -> int:
        try:
            return int(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    @step.setter
    def step(self, value: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(str(value))


# Nothing but what we tell it: no output, no code, no samples of the machine's load while the run is timed.
_QUIET: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "save_code": False,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "reinit": "create_new",
    "stop_fn": lambda: None,  # a server does not stop a run
}


def _limits(seconds: float) -> dict[str, Any]:
    """Settings by which a server that is gone or hangs costs about ``seconds`` (two attempts) at the start and end."""
    found: dict[str, Any] = {
        "init_timeout": seconds,
        "finish_timeout": seconds,
        "finish_timeout_raises": True,
        "summary_timeout": max(1, round(seconds)),
        "x_service_wait": 2 * seconds,
        "x_disable_viewer": True,  # one more question to the server
        "x_graphql_timeout_seconds": 0.4 * seconds,
        "x_graphql_retry_max": 1,
        "x_graphql_retry_wait_min_seconds": 0.1,
        "x_graphql_retry_wait_max_seconds": 0.1 * seconds,
    }
    return found


def _require_key() -> None:
    import wandb

    if (elsewhere := os.environ.get("WANDB_MODE", "online")) != "online":
        raise UserError(f"mode=online, while WANDB_MODE={elsewhere!r} is set: unset it, or give tracker.mode=offline")
    try:
        known = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise UserError(one_line(error)) from error
    if not known:
        raise UserError(
            "mode=online needs an API key of W&B: set WANDB_API_KEY or call 'wandb login'; or give tracker.mode=offline"
        )


def _table(outcome: Outcome) -> Any:
    import wandb

    return wandb.Table(columns=list(COLUMNS), data=[*outcome.table()])


def _shown(path: Path, media_type: str) -> Any:
    """A sample as W&B shows it; None for a kind that it does not show."""
    make = _SHOWN.get(media_type) or _SHOWN.get(media_type.partition("/")[0])
    return None if make is None else make(path)


def _image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path))


def _audio(path: Path) -> Any:
    import wandb

    return wandb.Audio(str(path))


def _text(path: Path) -> Any:
    from html import escape

    import wandb

    return wandb.Html(f"<pre>{escape(path.read_text(errors='replace'))}</pre>", inject=False)


_SHOWN: Mapping[str, Callable[[Path], Any]] = {"image": _image, "audio": _audio, "text": _text}
