"""The training loop on Lightning Fabric: AdamW and a schedule; resumes at any step, bit for bit on CPU.

The random state is seeded anew at each step from (seed, step) and batches are a function of their index, so a run that
was cut needs only the state of model and optimiser to end as an uncut one does.
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn

from cab.recomputation import recompute_activations
from cab.slots import derived_seed
from tasks.contract import Batch, Recipe, Task
from tasks.whole_file import whole_file


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
    """The rate of step 0, 1, ...: linear over ``warmup_steps``, then as the recipe's schedule says."""
    warmup, total = recipe.warmup_steps, recipe.max_steps
    factor = (step + 1) / warmup if step < warmup else recipe.schedule(step, warmup, total)
    return recipe.learning_rate * factor


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, as GPT-2 and RoBERTa train."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.epsilon)


_PRECISION: Mapping[torch.dtype, Literal["32-true", "bf16-mixed", "64-true"]] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",  # by autocast, parameters staying float32
    torch.float64: "64-true",
}


def make_fabric(device: torch.device, dtype: torch.dtype, devices: int = 1) -> Fabric:
    """Fabric on one device, or (in each of the processes that train together) on the first ``devices``, by DDP."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every precision
    return Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" and devices == 1 else devices,
        strategy="auto" if devices == 1 else "ddp",
        precision=_PRECISION[dtype],
        # Whoever started the process: Fabric would take a cell in a job of Slurm for a part of a larger training.
        plugins=[LightningEnvironment()],
    )


class Learner:
    """A model with its optimiser: updates from batches.

    Args:
        model: trained in place, on the device where it is.
        fabric: says where and in which precision; None: on that one device, in float32.
    """

    def __init__(self, task: Task, model: nn.Module, recipe: Recipe, fabric: Fabric | None = None) -> None:
        self.task, self.recipe = task, recipe
        self.fabric = fabric or make_fabric(next(model.parameters()).device, torch.float32)
        if recipe.activation_checkpointing:
            recompute_activations(model)
        self.model, self.optimizer = self.fabric.setup(model, make_optimizer(model, recipe))

    def update(self, batches: Sequence[Batch], seeds: Sequence[int] = ()) -> Tensor:
        """One update from the mean of the batches' losses; returns it (detached).

        Args:
            batches: of this process; those of several processes are as many.
            seeds: of torch's random state at each batch, where given.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = None
        for number, batch in enumerate(batches, start=1):
            if seeds:
                torch.manual_seed(seeds[number - 1])
            # Gradients of several devices meet once, after the last batch.
            with self.fabric.no_backward_sync(self.model, enabled=number < len(batches)), self.fabric.autocast():
                loss = self.task.loss(self.model, self.fabric.to_device(dict(batch))) / len(batches)
            self.fabric.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        if self.recipe.gradient_clip is not None:
            limit = self.recipe.gradient_clip
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.optimizer.step()
        return total


class Interruption:
    """Turns SIGINT and SIGTERM into a flag, so that a step is never cut in half; a second one is immediate.

    What comes within a second of the first is the same wish: a terminal, a scheduler and a parent may all pass it on.
    """

    SAME_WISH_S = 1.0

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at = 0.0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._at > self.SAME_WISH_S:
            raise KeyboardInterrupt

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
    """Whole or not at all; ``OSError`` where the disk is full."""
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    with whole_file(path) as partial, partial.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's archive writer says so of whatever the file refused
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from error


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


def _mean(fabric: Fabric, value: Tensor) -> float:
    """Over the processes that train together."""
    if fabric.world_size > 1:
        reduced = fabric.all_reduce(value, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        value = reduced
    return float(value)


def train(
    task: Task,
    model: nn.Module,
    recipe: Recipe,
    *,
    seed: int,
    fabric: Fabric | None = None,
    checkpoint: Path | None = None,
    checkpoint_interval_s: float = 30.0,
    log_every: int = 10,
    on_log: Callable[[int, float], None] = lambda step, loss: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Progress:
    """Trains ``model`` in place to ``recipe.max_steps``.

    Where several processes train together, each calls this with its ``fabric`` and takes its share of the batches of
    an update; they stop together, the first of them keeps the checkpoint, and that of the last step stays.

    Raises:
        Diverged: the loss is not finite.
        KeyboardInterrupt: after SIGINT or SIGTERM, with the checkpoint written.
    """
    device = next(model.parameters()).device
    learner = Learner(task, model, recipe, fabric)
    fabric, optimizer = learner.fabric, learner.optimizer
    together = fabric.world_size > 1
    progress = Progress() if checkpoint is None else load_checkpoint(checkpoint, model, optimizer, warn)
    model.train()
    batches = task.batches("train", seed, start=progress.step * recipe.accumulate)
    order, own = range(recipe.accumulate), slice(fabric.global_rank, None, fabric.world_size)
    saved = time.monotonic()
    with Interruption().watching() as interruption:
        while progress.step < recipe.max_steps:
            begin = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, progress.step)
            drawn = list(itertools.islice(batches, recipe.accumulate))
            seeds = [derived_seed(seed, "step", progress.step, *([number] if number else [])) for number in order]
            loss = learner.update(drawn[own], seeds[own])
            progress.step += 1
            progress.tokens += sum(task.tokens(batch) for batch in drawn)
            last = progress.step == recipe.max_steps
            if progress.step % log_every == 0 or last or progress.step == 1:
                value = _mean(fabric, loss)
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {progress.step}")
                progress.logged_steps.append(progress.step)
                progress.logged_losses.append(value)
            if last and device.type == "cuda":
                torch.cuda.synchronize(device)
            progress.seconds += time.perf_counter() - begin
            if progress.logged_steps[-1:] == [progress.step]:
                on_log(progress.step, progress.logged_losses[-1])  # after the clock: who listens costs no speed
            cut = interruption.signal is not None
            if together:  # a process that stopped alone would leave the others waiting for its gradients
                cut = _mean(fabric, torch.tensor(float(cut), device=device)) > 0
            due = cut or (together and last) or time.monotonic() - saved >= checkpoint_interval_s
            if checkpoint is not None and due and fabric.is_global_zero:
                save_checkpoint(checkpoint, model, optimizer, progress)
                saved = time.monotonic()
            if cut:
                raise KeyboardInterrupt
    return progress
