"""Trackers: mirrors of curves and records for people who watch runs elsewhere; never the only copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from cab.errors import UserError, unknown


class Tracker(Protocol):
    """What a run tells: its start, its curve, and its values at the end."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, summary: Mapping[str, float]) -> None: ...


class NoTracker:
    """Tracks nothing: the records are enough."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, summary: Mapping[str, float]) -> None: ...


class WandbTracker:
    """Weights & Biases. ``mode=offline`` needs no account and no network: ``wandb sync`` uploads later.

    Args:
        project: of W&B.
        mode: ``offline``, ``online`` or ``disabled``.
    """

    def __init__(self, project: str = "cab", mode: Literal["offline", "online", "disabled"] = "offline") -> None:
        if mode not in ("offline", "online", "disabled"):
            raise unknown("tracker.mode", mode, ("offline", "online", "disabled"))
        self.project = project
        self.mode = mode

    def start(self, name: str, config: Mapping[str, Any], folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,
            name=name,
            config=dict(config),
            dir=str(folder),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


class TensorBoardTracker:
    """TensorBoard event files under ``trackers/`` of the records' folder."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tracker 'tensorboard' is not installed: pip install 'cab-attention[tensorboard]'"
            ) from error
        self._writer_type = SummaryWriter

    def start(self, name: str, config: Mapping[str, Any], folder: Path) -> None:
        self._writer = self._writer_type(log_dir=str(folder / name))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, global_step=step)

    def finish(self, summary: Mapping[str, float]) -> None:
        for key, value in summary.items():
            self._writer.add_scalar(f"summary/{key}", value)
        self._writer.close()
