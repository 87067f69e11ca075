"""TensorBoard as a tracker: event files under ``trackers/tensorboard/[<sweep>/]<run>`` of the records' folder."""

from __future__ import annotations

import glob
import io
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cab.errors import UserError
from cab.tracking import COLUMNS, Outcome, TrackedRun


class TensorBoardTracker:
    """The loss by step, and at the end the values, a table of them and the task's samples.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard is not installed: pip install 'cab-attention[tensorboard]'") from error
        self._writer_type = SummaryWriter
        self._writer: Any = None
        self._folder: Path | None = None
        self._step = 0

    def start(self, run: TrackedRun) -> None:
        root = run.folder / "tensorboard"
        # Where it was cut it goes on, whichever sweep it belongs to now.
        name = run.name.replace("/", "_")  # of an option's value
        before = sorted([*root.glob(glob.escape(name)), *root.glob(f"*/{glob.escape(name)}")])
        self._folder = before[0] if before else root / (run.group or "") / name
        self._folder.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            # Readers drop what an earlier process wrote of this step and later ones.
            self._open(purge_step=step)
        self._step = step
        for key, value in values.items():
            self._writer.add_scalar(key, value, global_step=step)
        self._writer.flush()

    def finish(self, outcome: Outcome) -> None:
        if self._folder is None:
            return
        if self._writer is None:
            self._open()
        try:
            for key, value in outcome.values.items():
                self._writer.add_scalar(f"summary/{key}", value, self._step)
            said = outcome.status + (f": {outcome.reason}" if outcome.reason else "")
            self._writer.add_text("status", said, self._step)
            if outcome.rows:
                self._writer.add_text("rows", _markdown(outcome), self._step)
            for path, media_type in outcome.samples:
                if write := _SHOWN.get(media_type.partition("/")[0]):
                    write(self._writer, path, self._step)
        finally:
            self._writer.close()
            self._writer = self._folder = None

    def _open(self, **how: int) -> None:
        self._writer = self._writer_type(log_dir=str(self._folder), **how)


def _markdown(outcome: Outcome) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *outcome.table()]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def _image(writer: Any, path: Path, step: int) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    writer.add_image(f"samples/{path.name}", pixels, step, dataformats="HWC")


def _audio(writer: Any, path: Path, step: int) -> None:
    """A WAV file of 16 bits; the first channel."""
    with wave.open(str(path), "rb") as file:
        rate, channels = file.getframerate(), file.getnchannels()
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").reshape(-1, channels)[:, 0]
    writer.add_audio(f"samples/{path.name}", samples.astype(np.float32) / 32768, step, sample_rate=rate)


def _text(writer: Any, path: Path, step: int) -> None:
    writer.add_text(f"samples/{path.name}", f"```\n{path.read_text(errors='replace')}\n```", step)


_SHOWN: Mapping[str, Callable[[Any, Path, int], None]] = {"image": _image, "audio": _audio, "text": _text}
