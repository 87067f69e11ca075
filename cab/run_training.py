"""The model of a run, built and trained: from scratch, or from trained weights with another attention around them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from attention_zoo.contract import Unsupported
from cab import device as devices
from cab.cells import Cell
from cab.errors import UserError, one_line, unknown
from cab.several_devices import Tell, train_together
from cab.slots import fill
from cab.train import CorruptCheckpoint, Progress, load_checkpoint, make_fabric, make_optimizer, train
from cab.trained_weights import Weights, take_over, weights_of
from tasks.contract import Slots

OnLog = Callable[[int, float], None]
Say = Callable[[str], None]
PARAMETER_BUDGET = 1.10  # CAB: an attention may add at most 10 % to the backbone's parameters


class OverBudget(RuntimeError):
    """The mechanism adds more parameters than the budget allows."""


def build_model(cell: Cell) -> torch.nn.Module:
    """The backbone with the mechanism in its slots, within the parameter budget, on the cell's device.

    Raises:
        OverBudget: the parameters exceed those of the same backbone with exact attention by more than 10 %.
        Unsupported: the mechanism has no form for a slot.
        UserError: a slot's width, heads or lengths do not fit.
    """
    slots = fill(cell.setting, cell.baseline, cell.pattern, seed=cell.config.seed, slots=_slots(cell.config.slots))
    model = _backbone(cell, slots)
    exact = _backbone(cell, fill(cell.baseline, cell.baseline, cell.pattern, seed=cell.config.seed))
    count, allowed = (sum(p.numel() for p in m.parameters()) for m in (model, exact))
    if count > PARAMETER_BUDGET * allowed:
        raise OverBudget(
            f"{count:,} parameters, {count / allowed - 1:+.0%} on the backbone's {allowed:,}; the budget is +10 %"
        )
    if cell.config.dtype == "float64":
        model = model.double()
    return model.to(cell.device)


def _backbone(cell: Cell, slots: Slots) -> torch.nn.Module:
    torch.manual_seed(cell.config.seed)
    try:
        return cell.task.build_model(slots)
    except Unsupported:
        raise
    except ValueError as error:
        raise UserError(f"{cell.task_name} with {cell.setting.name}: {one_line(error)}") from error


def _slots(name: str) -> Any:
    if name not in ("one", "all"):
        raise unknown("slots", name, ("one", "all"))
    return name


@functools.cache
def fabric_of(device: str, dtype: torch.dtype) -> Fabric:
    """One for all runs of this process: it holds nothing of a model."""
    return make_fabric(torch.device(device), dtype)


def trained(cell: Cell, on_log: OnLog, say: Say) -> tuple[torch.nn.Module, Progress]:
    """The model after the recipe's steps; goes on from the checkpoint of a cut run.

    Raises:
        Diverged, KeyboardInterrupt: as :func:`cab.train.train`; and what :func:`build_model` raises.
    """
    recipe, dtype = cell.recipe, devices.resolve_dtype(cell.config.dtype, training=True)
    for _ in range(2):
        model = _initial(cell, say)
        with contextlib.suppress(CorruptCheckpoint):
            if cell.config.devices == 1:
                return model, _train(cell, model, fabric_of(cell.device, dtype), on_log, say)
            state = checkpoint_of(cell), model, make_optimizer(model, recipe)
            progress = load_checkpoint(*state, say)
            if progress.step < recipe.max_steps:
                train_together(
                    functools.partial(_train_share, cell),
                    device=cell.device,
                    devices=cell.config.devices,
                    dtype=dtype,
                    heard=lambda message: on_log(*message) if isinstance(message, tuple) else say(message),
                )
                progress = load_checkpoint(*state, say)
            return model, progress
    raise RuntimeError(f"the checkpoint {checkpoint_of(cell)} cannot be removed")


def _initial(cell: Cell, say: Say) -> torch.nn.Module:
    """Before its first step: as built, or with the weights of its source."""
    model = build_model(cell)
    if cell.source is not None:
        take_over(model, _weights(cell.source, say), cell.source.setting.name)
    return model


def _weights(source: Cell, say: Say) -> Weights:
    if source.recipe.max_steps == 0:  # it comes trained, and its task has the weights
        return build_model(source).state_dict()
    return weights_of(source, functools.partial(_train_source, say=say), say)


def _train_source(source: Cell, say: Say) -> torch.nn.Module:
    model, _ = trained(source, lambda step, loss: None, say)
    checkpoint_of(source).unlink(missing_ok=True)
    return model


def with_exact_attention(cell: Cell, model: torch.nn.Module, say: Say) -> torch.nn.Module:
    """A drop-in run's ``model`` with the attention of its source; what the mechanism left out is as trained."""
    assert cell.source is not None
    dense = build_model(cell.source)
    trained_before = _weights(cell.source, say)
    # Buffers of the mechanism have no place: it has no parameter of its own, or it could not have been put in.
    now = {name: value for name, value in model.state_dict().items() if name in trained_before}
    take_over(dense, {**trained_before, **now}, cell.setting.name)
    return dense


def _train(cell: Cell, model: torch.nn.Module, fabric: Fabric, on_log: OnLog, warn: Say) -> Progress:
    return train(
        cell.task,
        model,
        cell.recipe,
        seed=cell.config.seed,
        fabric=fabric,
        checkpoint=checkpoint_of(cell),
        checkpoint_interval_s=cell.config.trainer.checkpoint_interval_s,
        log_every=cell.config.trainer.log_every,
        on_log=on_log,
        warn=warn,
    )


def _train_share(cell: Cell, fabric: Fabric, tell: Tell) -> None:
    """In one of the processes that train together."""
    model = _initial(cell, tell).to(fabric.device)

    def log(step: int, loss: float) -> None:
        if fabric.is_global_zero:
            tell((step, loss))

    _train(cell, model, fabric, log, tell)


def checkpoint_of(cell: Cell) -> Path:
    """Where a run that is cut leaves its state."""
    return cell.store.folder / "checkpoints" / f"{cell.key}.pt"
