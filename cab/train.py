"""The training loop: AdamW, linear warm-up, cosine decay; resumes at any step, bit for bit on CPU.

The random state is seeded anew at each step from (seed, step) and batches are a function of their index, so a run that
was cut needs only the state of model and optimiser to end as an uncut one does.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from cab.slots import derived_seed
from tasks.contract import Batch, Recipe, Task


class Diverged(RuntimeError):
    """The loss is not finite."""


@dataclass
class Progress:
    """What a run has done so far; kept in its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    logged_steps: list[int] = field(default_factory=list)
    logged_losses: list[float] = field(default_factory=list)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of step 0, 1, ...: linear over ``warmup_steps``, then half a cosine down to zero at ``max_steps``."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, as GPT-2 and RoBERTa train."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """bfloat16 by autocast, parameters staying float32; nothing for float32 and float64."""
    return torch.autocast(device.type, dtype) if dtype is torch.bfloat16 else nullcontext()


def to_device(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def training_step(
    task: Task, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, recipe: Recipe, dtype: torch.dtype
) -> torch.Tensor:
    """One update; returns the loss (detached)."""
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    with autocast(device, dtype):
        loss = task.loss(model, to_device(batch, device))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
    optimizer.step()
    return loss.detach()


class Interruption:
    """Turns SIGINT and SIGTERM into a flag, so that a step is never cut in half; a second signal is immediate."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @contextmanager
    def watching(self) -> Iterator[Interruption]:
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}, partial)
    partial.replace(path)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, warn: Callable[[str], None]
) -> Progress:
    """The progress of a cut run, put back into model and optimiser; a fresh start where there is none."""
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        progress = Progress(**state["progress"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        warn(f"checkpoint {path} cannot be read ({type(error).__name__}); starting from step 0")
        path.unlink(missing_ok=True)
        raise CorruptCheckpoint from error
    return progress


class CorruptCheckpoint(RuntimeError):
    """The checkpoint was damaged and is removed; the caller builds the model anew."""


def train(
    task: Task,
    model: nn.Module,
    recipe: Recipe,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    checkpoint: Path | None = None,
    checkpoint_interval_s: float = 30.0,
    log_every: int = 10,
    on_log: Callable[[int, float], None] = lambda step, loss: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Progress:
    """Trains ``model`` in place to ``recipe.max_steps``.

    Raises:
        Diverged: the loss is not finite.
        KeyboardInterrupt: after SIGINT or SIGTERM, with the checkpoint written.
    """
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, recipe)
    progress = Progress() if checkpoint is None else load_checkpoint(checkpoint, model, optimizer, warn)
    model.train()
    batches = task.batches("train", seed, start=progress.step)
    saved = time.monotonic()
    with Interruption().watching() as interruption:
        while progress.step < recipe.max_steps:
            begin = time.perf_counter()
            torch.manual_seed(derived_seed(seed, "step", progress.step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, progress.step)
            batch = next(batches)
            loss = training_step(task, model, batch, optimizer, recipe, dtype)
            progress.step += 1
            progress.tokens += task.tokens(batch)
            last = progress.step == recipe.max_steps
            if progress.step % log_every == 0 or last or progress.step == 1:
                value = float(loss)
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {progress.step}")
                progress.logged_steps.append(progress.step)
                progress.logged_losses.append(value)
                on_log(progress.step, value)
            if last and device.type == "cuda":
                torch.cuda.synchronize(device)
            progress.seconds += time.perf_counter() - begin
            cut = interruption.signal is not None
            if checkpoint is not None and (cut or time.monotonic() - saved >= checkpoint_interval_s):
                save_checkpoint(checkpoint, model, optimizer, progress)
                saved = time.monotonic()
            if cut:
                raise KeyboardInterrupt
    return progress
